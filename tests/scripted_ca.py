"""A strict ACME server (RFC 8555, over TLS) that breaks where a test tells it to.

    with ScriptedCA(folder, {"finalize": [problem("serverInternal", 500)]}) as ca:
        run a client with ca.directory, SSL_CERT_FILE=ca.ca_file and --acme-dir ca.challenges

or, with letsacme.py run and judged as well, trial.works({"finalize": [...]}): see trials.py.

A script maps the name of a resource to a list of faults (see faults.py), one for each request of it
in turn, or to one fault that meets every request; None is no fault. The resources are directory,
newNonce, newAccount, newOrder, authz, challenge, order, finalize, certificate and renewalInfo. The
entry "connection" of a script holds functions of the raw socket, called before the TLS handshake.

What the client does wrong is kept in ca.violations, and the end of the with block fails on it
(unless the option "forgive" is set, for a client that is given broken tools).
"""
import base64
import contextlib
import datetime
import http.server
import json
import re
import secrets
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography import x509
from faults import ERROR, Reply, problem
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pki import Issuer, ari_id, base64url, names_of, pem

ALGORITHMS = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384"}


class Refused(Exception):
    """A request that the CA answers with a problem document."""

    def __init__(self, kind, detail, status=400):
        super().__init__(detail)
        self.kind, self.detail, self.status = kind, detail, status


class Violation(Refused):
    """A request that no correct client sends."""

    def __init__(self, detail):
        super().__init__("malformed", detail)


def demand(condition, detail):
    """Stop the request as a violation unless the condition holds."""
    if not condition:
        raise Violation(detail)


@dataclass
class Request:
    """One request as it came, and what its JWS holds once that has been checked."""
    method: str
    path: str
    headers: object
    body: bytes
    protected: dict = field(default_factory=dict)
    payload: object = None
    account: dict = None

    def __post_init__(self):
        self.resource, _, self.id = self.path[1:].partition("/")


# ---- JOSE: the library checks signatures, and what follows that their form is as strict as can be

def unbase64(text):
    """Decode base64url in the only form that RFC 7515 allows."""
    demand(isinstance(text, str), "base64url is a string")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else b""
    demand(base64url(data) == text, "not base64url: %.100r" % text)
    return data


def parse(data, what):
    """Parse a JSON object that the client sent."""
    try:
        value = json.loads(data)
    except ValueError:
        raise Violation("%s is not JSON: %.100r" % (what, data)) from None
    demand(isinstance(value, dict), "%s is no object" % what)
    return value


def public_key(jwk, alg):
    """Turn a JWK into a key, if it is public, in the usual form, and right for the algorithm."""
    try:
        key = JWK(**jwk)
        usual = JWK.from_pyca(key.get_op_key("verify")).export_public(as_dict=True)
    except (JWException, TypeError) as error:
        raise Violation("odd key %s: %s" % (jwk, error)) from None
    demand(jwk == {name: usual[name] for name in usual if name != "kid"}, "odd key: %s" % jwk)
    demand(ALGORITHMS.get(jwk.get("crv", jwk["kty"])) == alg, "%s with %s" % (alg, jwk))
    return key


def verify(body, key):
    """Check the signature of a JWS."""
    token = JWS()
    token.deserialize(body)
    try:
        token.verify(key)
    except JWException as error:
        raise Violation("the signature does not match: %s" % error) from None
    size = {"ES256": 64, "ES384": 96}.get(token.jose_header["alg"])
    demand(not size or len(token.objects["signature"]) == size, "a signature of odd size")


# ---- The server

class Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests and delivers the CA's replies."""
    protocol_version = "HTTP/1.1"
    timeout = 120                           # an idle connection does not outlive the tests
    disable_nagle_algorithm = True          # no answer waits for an acknowledgement

    def serve(self):
        """Have the CA answer one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.server.ca.answer(Request(self.command, self.path, self.headers, body))
        reply.deliver(self, reply.render(head=self.command == "HEAD"))

    do_GET = do_HEAD = do_POST = serve

    def log_message(self, *_):
        """Say nothing: the CA keeps its own record."""


class Server(http.server.ThreadingHTTPServer):
    """A TLS server with one thread a connection; the handshake happens in the thread too."""
    request_queue_size = 100

    def __init__(self, ca, context):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.ca, self.context = ca, context
        self.server_bind()                  # listening comes later: until then it refuses

    def finish_request(self, request, client_address):
        """Do the handshake and serve the connection, unless the script says otherwise."""
        self.ca.connections += 1
        fault = self.ca.next_fault("connection")
        if fault:
            fault(request)
        if request.fileno() >= 0:
            request.settimeout(Handler.timeout)
            with self.context.wrap_socket(request, server_side=True) as tls:
                super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        """A client may leave at any time; any other trouble is a fault of this file."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, UnicodeError):
            self.ca.violations.append("the scripted CA failed: %r" % error)


class ScriptedCA:
    """The CA: its state, its record, and what it answers."""

    def __init__(self, folder, script=None, **options):
        self.script, self.options = dict(script or {}), options
        self.lock, self.counts = threading.RLock(), {}
        self.requests, self.times, self.violations, self.files = [], [], [], []
        self.nonces, self.accounts, self.orders = set(), {}, []
        self.authorizations, self.issued, self.connections = [], {}, 0
        self.issuer = options.get("issuer") or Issuer()
        (folder / "challenges").mkdir(parents=True)
        self.challenges = options.get("challenges", folder / "challenges")
        self.host = options.get("host", "localhost")
        self.ca_file = folder / "root.pem"
        self.ca_file.write_bytes(pem(self.issuer.root))
        self.server = Server(self, self.tls_context())
        self.base = "https://%s:%d" % (self.host, self.server.server_port)
        self.directory = self.base + "/directory"
        self.http_port = options.get("http_port", 80)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.timer = threading.Timer(options.get("down", 0), self.start)
        (self.timer.start if options.get("down") else self.start)()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.timer.cancel()
        if self.thread.is_alive():
            self.server.shutdown()
        self.server.server_close()
        assert kind or self.options.get("forgive") or not self.violations, self.violations

    def start(self):
        """Begin to listen; the option "down" is after how many seconds."""
        self.server.server_activate()
        self.thread.start()

    def tls_context(self):
        """Make the server's own certificate and its TLS settings."""
        now = datetime.datetime.now(datetime.timezone.utc)
        start, end = (now + datetime.timedelta(days=each)
                      for each in self.options.get("tls_days", (-1, 9)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.issuer.ca.issue_cert(self.options.get("tls_name", self.host), not_before=start,
                                  not_after=end).configure_cert(context)
        return context

    def count(self, resource):
        """How many requests of a resource there were."""
        return self.requests.count(resource)

    def pauses(self, first, then=None):
        """The seconds between each request of a resource and the next of it, or of another."""
        found, start = [], None
        for name, when in zip(self.requests, self.times):
            if start and name == (then or first):
                found.append(when - start)
                start = None
            start = when if name == first else start
        return found

    def next_fault(self, resource):
        """Return what the script says of this request, which is then counted."""
        with self.lock:
            turn = self.counts[resource] = self.counts.get(resource, 0) + 1
            faults = self.script.get(resource)
            if isinstance(faults, list):
                return faults[turn - 1] if turn <= len(faults) else None
            return faults

    # -- one request

    def answer(self, request):
        """Check a request, act on it and let the script spoil the reply."""
        with self.lock:
            fault, reply = self.next_fault(request.resource), Reply()
            self.requests.append(request.resource)
            self.times.append(time.monotonic())
            try:
                self.check(request)
                if not getattr(fault, "unheard", False):
                    reply = getattr(self, "do_" + request.resource)(request)
            except Refused as refused:
                if isinstance(refused, Violation):
                    self.violations.append("%s %s: %s" % (request.method, request.path, refused))
                problem(refused.kind, refused.status, detail=refused.detail)(request, reply)
            reply.headers.setdefault("Link", '<%s>;rel="index"' % self.directory)
            if request.method == "POST" or request.resource == "newNonce":
                nonce = reply.headers["Replay-Nonce"] = secrets.token_urlsafe(16)
                self.nonces.add(nonce)
            if fault:
                fault(request, reply)
            return reply

    def check(self, request):
        """Check all that RFC 8555 asks of any request."""
        demand(hasattr(self, "do_" + request.resource), "there is no such URL")
        demand(request.headers.get("Host") == self.base[8:], "Host: %s" % request.headers["Host"])
        agent, kind = request.headers.get("User-Agent", ""), request.headers.get("Content-Type")
        demand(agent and not agent.lower().startswith("python"), "User-Agent: %r" % agent)
        if request.resource in ("directory", "newNonce", "renewalInfo"):
            demand(request.method in ("GET", "HEAD"), "is to be fetched with GET")
            demand(not kind and "Content-Length" not in request.headers, "the type of no body")
        else:
            demand(request.method == "POST", "is to be fetched with POST")
            demand(kind == "application/jose+json", "Content-Type: %s" % kind)
            self.check_jws(request)

    def check_jws(self, request):
        """Check the JWS of a request and keep what it says."""
        jws = parse(request.body, "the body")
        demand(set(jws) == {"protected", "payload", "signature"}, "JWS with %s" % sorted(jws))
        request.protected = protected = parse(unbase64(jws["protected"]), "the protected header")
        by = "jwk" if request.resource == "newAccount" else "kid"
        demand(set(protected) == {"alg", "nonce", "url", by}, "protected: %s" % sorted(protected))
        demand(protected["url"] == self.base + request.path, "url is %s" % protected["url"])
        demand(protected["nonce"] in self.nonces, "the nonce was never given out, or used before")
        self.nonces.remove(protected["nonce"])
        if by == "kid":
            request.account = self.accounts.get(protected["kid"])
            if not request.account:
                raise Refused("accountDoesNotExist", "there is no account %s" % protected["kid"])
        jwk = request.account["jwk"] if by == "kid" else protected["jwk"]
        verify(request.body, public_key(jwk, protected["alg"]))
        payload = unbase64(jws["payload"])
        unbase64(jws["signature"])
        request.payload = parse(payload, "the payload") if payload else None

    # -- directory, nonces, accounts

    def do_directory(self, request):
        """The directory."""
        names = ["newNonce", "newAccount", "newOrder", "keyChange", "revokeCert", "renewalInfo"]
        meta = {"termsOfService": self.base + "/terms", "caaIdentities": ["localhost"],
                "externalAccountRequired": bool(self.options.get("eab")),
                "profiles": {"classic": "the usual", "shortlived": "six days"}}
        return Reply(body={**{name: "%s/%s" % (self.base, name) for name in names}, "meta": meta})

    def do_newNonce(self, request):
        """A nonce."""
        return Reply(status=200 if request.method == "HEAD" else 204,
                     headers={"Cache-Control": "no-store", "Content-Type": None,
                              "Content-Length": None if request.method == "GET" else 0})

    def do_newAccount(self, request):
        """Make an account, or find it."""
        payload, jwk = request.payload, request.protected["jwk"]
        demand(payload is not None, "newAccount without a payload")
        thumbprint = JWK(**jwk).thumbprint()
        url = "%s/account/%s" % (self.base, thumbprint)
        made = url not in self.accounts
        if made:
            if payload.get("onlyReturnExisting"):
                raise Refused("accountDoesNotExist", "no such account")
            if not payload.get("termsOfServiceAgreed"):
                raise Refused("userActionRequired", "the terms are to be agreed to", 403)
            if self.options.get("eab"):
                self.check_eab(payload.get("externalAccountBinding"), jwk)
            contact = payload.get("contact", [])
            demand(isinstance(contact, list), "contact is no list")
            self.accounts[url] = {"jwk": jwk, "thumbprint": thumbprint, "contact": contact}
        body = {"status": "valid", "contact": self.accounts[url]["contact"], "orders": url + "/x"}
        return Reply(201 if made else 200, body, {"Location": url})

    def check_eab(self, jws, jwk):
        """Check an external account binding."""
        if jws is None:
            raise Refused("externalAccountRequired", "an external account is needed", 403)
        demand(set(jws) == {"protected", "payload", "signature"}, "odd external account binding")
        protected = parse(unbase64(jws["protected"]), "the binding's protected header")
        demand(set(protected) == {"alg", "kid", "url"} and protected["alg"] == "HS256",
               "the binding's protected header is %s" % protected)
        demand(protected["url"] == self.base + "/newAccount", "the binding is for another URL")
        demand(parse(unbase64(jws["payload"]), "the binding") == jwk, "another key is bound")
        secret = self.options["eab"].get(protected["kid"], bytes(32))
        try:
            JWS().deserialize(json.dumps(jws), JWK(kty="oct", k=base64url(secret)))
        except JWException:
            raise Refused("unauthorized", "the external account is unknown", 403) from None

    # -- orders

    def mine(self, request, things):
        """Return the order or authorization that the URL names, if it is this account's."""
        demand(re.match(r"\d+\Z", request.id) and int(request.id) < len(things), "no such object")
        thing = things[int(request.id)]
        demand(thing["account"] is request.account, "this belongs to another account")
        return thing

    def do_newOrder(self, request):
        """Make an order and its authorizations."""
        payload = request.payload
        demand(payload and isinstance(payload.get("identifiers"), list), "no identifiers")
        demand(not set(payload) - {"identifiers", "profile", "replaces"}, "odd order: %s" % payload)
        names = [each["value"].lower() for each in payload["identifiers"]]
        demand(names and len(set(names)) == len(names), "none or repeated: %s" % names)
        for identifier in payload["identifiers"]:
            check_identifier(identifier)
        if payload.get("replaces") and payload["replaces"] not in self.issued:
            raise Refused("malformed", "there is no certificate to replace", 404)
        order = {"id": len(self.orders), "account": request.account, "status": "pending",
                 "identifiers": payload["identifiers"], "wait": self.options.get("validation", 1),
                 "replaces": payload.get("replaces"), "profile": payload.get("profile")}
        state = "valid" if self.options.get("reuse") else "pending"
        order["authorizations"] = [
            {"id": len(self.authorizations) + number, "account": order["account"], "order": order,
             "identifier": each, "status": state, "challenge": state, "error": None,
             "token": self.options.get("token", secrets.token_urlsafe(24))}
            for number, each in enumerate(reversed(order["identifiers"]))]
        self.authorizations += order["authorizations"]
        self.orders.append(order)
        self.settle(order)
        reply = self.order_reply(order)
        reply.status, reply.headers["Location"] = 201, "%s/order/%d" % (self.base, order["id"])
        return reply

    def order_reply(self, order):
        """Show an order."""
        body = {"status": order["status"], "identifiers": order["identifiers"],
                "expires": "2099-01-01T00:00:00Z",
                "authorizations": ["%s/authz/%d" % (self.base, each["id"])
                                   for each in order["authorizations"]],
                "finalize": "%s/finalize/%d" % (self.base, order["id"])}
        if order["status"] == "valid":
            body["certificate"] = "%s/certificate/%d" % (self.base, order["id"])
        return Reply(body=body)

    def do_authz(self, request):
        """Show an authorization; it has challenges that are of no use to an http-01 client."""
        demand(request.payload is None, "an authorization is only to be read")
        authorization = self.mine(request, self.authorizations)
        if authorization["challenge"] == "processing":
            self.get_on(authorization["order"])
        others = [{"type": kind, "url": "%s/never/%s" % (self.base, kind), "status": "pending",
                   "token": authorization["token"]} for kind in ("dns-persist-01", "dns-01")]
        return Reply(body={"identifier": authorization["identifier"],
                           "status": authorization["status"], "expires": "2099-01-01T00:00:00Z",
                           "future": {"field": [1]},
                           "challenges": [*others, self.challenge_body(authorization)]})

    def challenge_body(self, authorization):
        """Show the http-01 challenge of an authorization."""
        body = {"type": "http-01", "url": "%s/challenge/%d" % (self.base, authorization["id"]),
                "status": authorization["challenge"], "token": authorization["token"]}
        if authorization["status"] == "invalid":
            body["error"] = authorization["error"]
        return body

    def do_challenge(self, request):
        """Validate: read the file now, and let the order tell the result later."""
        demand(request.payload == {}, "a challenge is answered with {}")
        authorization = self.mine(request, self.authorizations)
        if authorization["challenge"] != "pending":
            raise Refused("malformed", "this challenge has been answered", 400)
        authorization["error"] = self.validate(authorization)
        authorization["challenge"] = "processing"
        up = '<%s/authz/%d>;rel="up"' % (self.base, authorization["id"])
        if not authorization["order"]["wait"]:
            self.settle(authorization["order"])
        return Reply(body=self.challenge_body(authorization), headers={"Link": up})

    def validate(self, authorization):
        """Read the challenge file as a web server would; return the problem, if there is one."""
        file = self.challenges / authorization["token"]
        try:
            self.files.append((file.name, file.lstat().st_mode))
            if file.read_text() == file.name + "." + authorization["account"]["thumbprint"]:
                return None
            detail = "the file does not hold what it should"
        except OSError as error:
            detail = "the file cannot be read: %s" % error.strerror
        return {"type": ERROR + "unauthorized", "detail": detail, "status": 403}

    def do_order(self, request):
        """Show an order, which gets on a little with each look."""
        demand(request.payload is None, "an order is only to be read")
        order = self.mine(request, self.orders)
        self.get_on(order)
        return self.order_reply(order)

    def get_on(self, order):
        """The client waits and looks: after so many looks, the order is done."""
        order["wait"] -= 1
        if order["wait"] <= 0:
            self.settle(order)

    def settle(self, order):
        """Let an order reach the state that its authorizations, or the issuance, give it."""
        if order["status"] == "processing":
            order["status"] = "valid"
        for each in order["authorizations"]:
            if each["challenge"] != "pending":
                each["status"] = each["challenge"] = "invalid" if each["error"] else "valid"
        states = {each["status"] for each in order["authorizations"]}
        if order["status"] == "pending" and "invalid" in states:
            order["status"] = "invalid"
        elif order["status"] == "pending" and states == {"valid"}:
            order["status"] = "ready"

    def do_finalize(self, request):
        """Check the CSR and issue."""
        order, payload = self.mine(request, self.orders), request.payload
        demand(payload and set(payload) == {"csr"}, "finalize takes a csr")
        if order["status"] != "ready":
            raise Refused("orderNotReady", "the order is %s" % order["status"], 403)
        csr = x509.load_der_x509_csr(unbase64(payload["csr"]))
        names, ordered = csr_names(csr), {e["value"].lower() for e in order["identifiers"]}
        demand(csr.is_signature_valid, "the CSR's signature is wrong")
        demand(names == ordered, "the CSR is for %s, ordered were %s" % (names, ordered))
        leaf = self.issuer.leaf(sorted(names), csr.public_key())
        order["certificate"] = pem(leaf, self.issuer.intermediate)
        self.issued[ari_id(leaf)] = leaf
        order["status"], order["wait"] = "processing", self.options.get("issuance", 1)
        if not order["wait"]:
            self.settle(order)
        return self.order_reply(order)

    def do_certificate(self, request):
        """Hand out the certificate and its chain."""
        demand(request.payload is None, "a certificate is only to be read")
        order = self.mine(request, self.orders)
        demand(order["status"] == "valid", "there is no certificate yet")
        return Reply(body=order["certificate"])

    def do_renewalInfo(self, request):
        """Tell when a certificate is to be renewed, if the option "window" does."""
        demand(re.match(r"[\w-]+\.[\w-]+\Z", request.id), "odd identifier %s" % request.id)
        if not self.options.get("window"):
            raise Refused("malformed", "there is no such certificate", 404)
        texts = [each.strftime("%Y-%m-%dT%H:%M:%SZ") for each in self.options["window"]]
        return Reply(body={"suggestedWindow": dict(zip(("start", "end"), texts))},
                     headers={"Retry-After": 21600})


def check_identifier(identifier):
    """Check one identifier of an order."""
    demand(set(identifier) == {"type", "value"}, "odd identifier: %s" % identifier)
    try:
        kind = ("ip", str(ip_address(identifier["value"])))
    except ValueError:
        kind = ("dns", identifier["value"])
    demand((identifier["type"], identifier["value"]) == kind, "%s for %s" % (identifier, kind))


def csr_names(csr):
    """Return all names of a CSR, in lower case."""
    names = {each.value for each in csr.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)}
    with contextlib.suppress(x509.ExtensionNotFound):
        names |= names_of(csr)
    return {name.lower() for name in names}
