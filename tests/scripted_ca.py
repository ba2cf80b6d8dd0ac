"""A strict ACME server (RFC 8555, over TLS) that breaks where a test tells it to.

    with ScriptedCA(folder, {"finalize": [problem("serverInternal", 500)]}) as ca:
        run a client with ca.directory and SSL_CERT_FILE=ca.ca_file

or, with letsacme.py run and judged as well, trial.works({"finalize": [...]}): see trials.py.

A script maps the name of a resource to a list of faults (see faults.py), one for each request of it
in turn, or to one fault that meets every request; None is no fault. The faults of "connection" are
functions of the raw socket, called before the TLS handshake.

What raises an exception here is a violation, on which the end of the with block fails (unless the
option "forgive" is set, for a client that is given broken tools).
"""
import base64
import copy
import http.server
import itertools
import json
import re
import secrets
import ssl
import sys
import threading
import time
from ipaddress import ip_address
from types import SimpleNamespace

from cryptography import x509
from faults import ERROR, Reply, problem
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS, InvalidJWSSignature
from pki import Issuer, ari_id, base64url, names_of, pem

ALGORITHMS = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384"}
EXPIRES = "2099-01-01T00:00:00Z"
PAYLOADS = {"authz": None, "order": None, "certificate": None, "challenge": {}}
METHODS = {"directory": "GET", "renewalInfo": "GET", "newNonce": "HEAD"}


class Refused(Exception):
    """A request that the CA answers with a problem: its kind, the status and the detail."""


# ---- JOSE: the library checks signatures, and what follows that their form is as strict as can be

def unbase64(text):
    """Decode base64url in the only form that RFC 7515 allows."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert base64url(data) == text, "not base64url: %.100r" % text
    return data


def read_jws(jws, *fields):
    """Return the protected header of a JWS, which must have these fields, and the payload."""
    assert set(jws) == {"protected", "payload", "signature"}, "JWS with %s" % sorted(jws)
    protected = json.loads(unbase64(jws["protected"]))
    assert set(protected) == set(fields), "protected: %s" % sorted(protected)
    payload = unbase64(jws["payload"])
    return protected, json.loads(payload) if payload else None


def verify(jws, jwk):
    """Check a signature, and that the key is public, in the usual form, and of the algorithm."""
    key, token = JWK(**jwk), JWS()
    usual = JWK.from_pyca(key.get_op_key("verify")).export_public(as_dict=True)
    assert jwk == {name: usual[name] for name in usual if name != "kid"}, "odd key: %s" % jwk
    token.deserialize(json.dumps(jws), key)
    algorithm, signature = token.jose_header["alg"], unbase64(jws["signature"])
    assert ALGORITHMS.get(jwk.get("crv", jwk["kty"])) == algorithm, "%s with %s" % (algorithm, jwk)
    size = {"ES256": 64, "ES384": 96}.get(algorithm, len(signature))
    assert len(signature) == size, "a signature of odd size"


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests and delivers the CA's replies."""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True          # no answer waits for an acknowledgement

    def serve(self):
        """Have the CA answer one request, which is this object."""
        self.resource, _, self.id = self.path[1:].partition("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.server.ca.answer(self)
        reply.deliver(self, reply.render(head=self.command == "HEAD"))

    do_GET = do_HEAD = do_POST = serve

    def log_message(self, *_):
        """Say nothing: the CA keeps its own record."""


class Server(http.server.ThreadingHTTPServer):
    """A TLS server with one thread a connection; the handshake happens in the thread too."""

    def finish_request(self, request, client_address):
        """Do the handshake and serve the connection, unless the script says otherwise."""
        self.ca.connections += 1
        fault = self.ca.next_fault("connection")
        if fault:
            fault(request)
        if request.fileno() >= 0:
            with self.ca.tls.wrap_socket(request, server_side=True) as tls:
                super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        """A client may leave at any time; any other trouble is a fault of the tests."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, UnicodeError):
            self.ca.violations.append("the scripted CA failed: %r" % error)


class ScriptedCA:
    """The CA: its state, its record, and what it answers."""

    def __init__(self, folder, script=None, **options):
        self.script = {name: iter(faults) if isinstance(faults, list) else itertools.repeat(faults)
                       for name, faults in (script or {}).items()}
        self.options, self.lock = options, threading.RLock()
        self.requests, self.times, self.violations, self.files = [], [], [], []
        self.nonces, self.accounts, self.orders, self.issued = set(), {}, {}, {}
        self.connections = 0
        self.issuer = options.get("issuer") or Issuer()
        host, self.http_port = options.get("host", "localhost"), options.get("http_port", 80)
        self.ca_file = folder / "root.pem"
        folder.mkdir()
        self.ca_file.write_bytes(pem(self.issuer.root))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.issuer.ca.issue_cert(options.get("tls_name", host), not_after=options.get("tls_end")
                                  ).configure_cert(self.tls)
        self.server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.ca = self
        self.server.server_bind()
        self.base = "https://%s:%d" % (host, self.server.server_port)
        self.directory = self.base + "/directory"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        if not options.get("down"):         # else connections to it are refused until then
            self.start()

    def start(self):
        """Begin to listen."""
        self.server.server_activate()
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.thread.is_alive():
            self.server.shutdown()
        self.server.server_close()
        assert kind or self.options.get("forgive") or not self.violations, self.violations

    def count(self, resource):
        """How many requests of a resource there were."""
        return self.requests.count(resource)

    def pauses(self, resource):
        """The seconds before each request of a resource but the first, since any request."""
        steps = zip(self.requests[1:], self.times, self.times[1:])
        return [end - start for name, start, end in steps if name == resource][1:]

    def next_fault(self, resource):
        """Return what the script says of this request."""
        return next(self.script.get(resource, iter(())), None)

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
                    reply.body = copy.deepcopy(reply.body)  # which a fault may change
            except Refused as refused:
                kind, status, detail = refused.args
                problem(kind, status, detail=detail)(request, reply)
            except Exception as error:
                self.violations.append("%s %s: %r" % (request.command, request.path, error))
                problem("malformed", 400)(request, reply)
            if request.command == "POST" or request.resource == "newNonce":
                nonce = reply.headers["Replay-Nonce"] = secrets.token_urlsafe(16)
                self.nonces.add(nonce)
            if fault:
                fault(request, reply)
            return reply

    def check(self, request):
        """Check all that RFC 8555 asks of any request, and keep what its JWS holds."""
        method, headers = METHODS.get(request.resource, "POST"), request.headers
        assert request.command == method, "is to be fetched with " + method
        assert headers["Host"] == self.base[8:], "Host: %s" % headers["Host"]
        agent, kind = headers.get("User-Agent", ""), headers["Content-Type"]
        assert agent and not agent.lower().startswith("python"), "User-Agent: %r" % agent
        if method != "POST":
            assert not kind and "Content-Length" not in headers, "the type of no body"
            return
        assert kind == "application/jose+json", "Content-Type: %s" % kind
        jws, by = json.loads(request.body), "jwk" if request.resource == "newAccount" else "kid"
        protected, request.payload = read_jws(jws, "alg", "nonce", "url", by)
        right = PAYLOADS.get(request.resource, request.payload)
        assert request.payload == right, "the payload is to be %s" % right
        assert protected["url"] == self.base + request.path, "url is %s" % protected["url"]
        self.nonces.remove(protected["nonce"])  # if it was given out, and not used before
        request.account = protected[by] if by == "jwk" else self.accounts[protected[by]]
        verify(jws, request.account)

    def do_directory(self, request):
        """The directory."""
        names = ["newNonce", "newAccount", "newOrder", "keyChange", "revokeCert", "renewalInfo"]
        meta = {"termsOfService": self.base + "/terms", "caaIdentities": ["localhost"]}
        return Reply(body={**{name: "%s/%s" % (self.base, name) for name in names}, "meta": meta})

    def do_newNonce(self, request):
        """A nonce."""
        return Reply(headers={"Cache-Control": "no-store", "Content-Type": None})

    def do_newAccount(self, request):
        """Make an account, or find it."""
        payload, jwk = request.payload, request.account
        assert isinstance(payload.get("contact", []), list), "contact is no list"
        url = "%s/account/%s" % (self.base, JWK(**jwk).thumbprint())
        made = url not in self.accounts
        if made:
            if payload.get("onlyReturnExisting"):
                raise Refused("accountDoesNotExist", 400, "no such account")
            assert payload.get("termsOfServiceAgreed"), "the terms are to be agreed to"
            if "eab" in self.options:
                self.check_eab(payload.get("externalAccountBinding"), jwk)
            self.accounts[url] = jwk
        return Reply(201 if made else 200, {"status": "valid", "orders": url + "/x"},
                     {"Location": url})

    def check_eab(self, jws, jwk):
        """Check an external account binding."""
        if jws is None:
            raise Refused("externalAccountRequired", 403, "an external account is needed")
        protected, payload = read_jws(jws, "alg", "kid", "url")
        url = self.base + "/newAccount"
        assert (protected["alg"], protected["url"], payload) == ("HS256", url, jwk), "odd binding"
        secret = self.options["eab"].get(protected["kid"], bytes(32))
        try:
            JWS().deserialize(json.dumps(jws), JWK(kty="oct", k=base64url(secret)))
        except InvalidJWSSignature:
            raise Refused("unauthorized", 403, "the external account is unknown") from None

    def mine(self, request):
        """Return the order, and the authorization if any, that the URL of its owner names."""
        number, *index = request.id.split("/")
        order = self.orders[number]
        assert order.account == request.account, "this belongs to another account"
        return [order, *[order.authorizations[int(each)] for each in index]]

    def do_newOrder(self, request):
        """Make an order and its authorizations."""
        payload, identifiers = request.payload, request.payload["identifiers"]
        assert not set(payload) - {"identifiers", "profile", "replaces"}, "odd order: %s" % payload
        names = [each["value"].lower() for each in identifiers]
        assert names and len(set(names)) == len(names), "none or repeated: %s" % names
        for identifier in identifiers:
            check_identifier(identifier)
        if payload.get("replaces") and payload["replaces"] not in self.issued:
            raise Refused("malformed", 404, "there is no certificate to replace")
        number = str(len(self.orders))
        url = self.base + "/%s/" + number
        urls = [url + "/%d" % index for index in range(len(identifiers))]
        shown = {"status": "ready" if self.options.get("reuse") else "pending", "expires": EXPIRES,
                 "identifiers": identifiers, "finalize": url % "finalize",
                 "authorizations": [each % "authz" for each in urls]}
        self.orders[number] = SimpleNamespace(
            account=request.account, shown=shown, wait=self.options.get("validation", 1),
            authorizations=[*map(self.authorization, urls, reversed(identifiers))], results=[])
        return Reply(201, shown, {"Location": url % "order"})

    def authorization(self, url, identifier):
        """Make an authorization; its last challenge is the only one for an http-01 client."""
        state = "valid" if self.options.get("reuse") else "pending"
        token = self.options.get("token", secrets.token_urlsafe(24))
        places = {"dns-persist-01": "never", "dns-01": "never", "http-01": "challenge"}
        challenges = [{"type": kind, "url": url % places[kind], "status": state, "token": token}
                      for kind in places]
        return {"identifier": identifier, "status": state, "expires": EXPIRES,
                "future": {"field": [1]}, "challenges": challenges}

    def do_authz(self, request):
        """Show an authorization."""
        order, authorization = self.mine(request)
        if authorization["challenges"][2]["status"] == "processing":
            self.get_on(order)
        return Reply(body=authorization)

    def do_challenge(self, request):
        """Validate: read the file now, and let the order tell the result later."""
        order, authorization = self.mine(request)
        challenge = authorization["challenges"][2]
        if challenge["status"] != "pending":
            raise Refused("malformed", 400, "this challenge has been answered")
        challenge["status"] = "processing"
        error = self.trouble_with(challenge["token"], JWK(**order.account).thumbprint())
        order.results.append((authorization, {"status": "invalid", "error": {
            "type": ERROR + "unauthorized", "detail": error}} if error else {"status": "valid"}))
        self.get_on(order, 0)
        return Reply(body=challenge)

    def trouble_with(self, token, thumbprint):
        """Read the challenge file as a web server would; return what is wrong with it."""
        file = self.options["challenges"] / token
        try:
            self.files.append((token, file.lstat().st_mode))
            good = file.read_text() == token + "." + thumbprint
            return None if good else "the file does not hold what it should"
        except OSError as error:
            return "the file cannot be read: %s" % error.strerror

    def do_order(self, request):
        """Show an order, which gets on a little with each look."""
        [order] = self.mine(request)
        self.get_on(order)
        return Reply(body=order.shown)

    def get_on(self, order, looks=1):
        """The client has looked: after so many looks, its proofs and the issuance are done."""
        order.wait -= looks
        if order.wait > 0:
            return
        shown = order.shown
        for authorization, result in order.results:
            authorization["status"] = result["status"]
            authorization["challenges"][2].update(result)
        states = {each["status"] for each in order.authorizations}
        if shown["status"] == "processing":
            shown["certificate"] = shown["finalize"].replace("finalize", "certificate")
            shown["status"] = "valid"
        elif shown["status"] == "pending" and "invalid" in states:
            shown["status"] = "invalid"
        elif shown["status"] == "pending" and states == {"valid"}:
            shown["status"] = "ready"

    def do_finalize(self, request):
        """Check the CSR and issue."""
        assert set(request.payload) == {"csr"}, "finalize takes a csr"
        [order] = self.mine(request)
        if order.shown["status"] != "ready":
            raise Refused("orderNotReady", 403, "the order is not ready")
        csr = x509.load_der_x509_csr(unbase64(request.payload["csr"]))
        assert csr.is_signature_valid, "the CSR's signature is wrong"
        names = {name.lower() for name in names_of(csr)} | {e.value.lower() for e in csr.subject}
        ordered = {each["value"].lower() for each in order.shown["identifiers"]}
        assert names == ordered, "the CSR is for %s, ordered were %s" % (names, ordered)
        leaf = self.issuer.leaf(sorted(names), csr.public_key())
        order.certificate = pem(leaf, self.issuer.intermediate)
        self.issued[ari_id(leaf)] = leaf
        order.shown["status"], order.wait = "processing", self.options.get("issuance", 1)
        self.get_on(order, 0)
        return Reply(body=order.shown)

    def do_certificate(self, request):
        """Hand out the certificate and its chain."""
        [order] = self.mine(request)
        assert order.shown["status"] == "valid", "there is no certificate yet"
        return Reply(body=order.certificate)

    def do_renewalInfo(self, request):
        """Tell when a certificate is to be renewed, if the option "window" does."""
        assert re.fullmatch(r"[\w-]+\.[\w-]+", request.id), "odd identifier %s" % request.id
        if not self.options.get("window"):
            raise Refused("malformed", 404, "there is no such certificate")
        start, end = [each.strftime("%Y-%m-%dT%H:%M:%SZ") for each in self.options["window"]]
        return Reply(body={"suggestedWindow": {"start": start, "end": end}},
                     headers={"Retry-After": 21600})


def check_identifier(identifier):
    """Check one identifier of an order."""
    value = identifier["value"]
    try:
        right = {"type": "ip", "value": str(ip_address(value))}
    except ValueError:
        right = {"type": "dns", "value": value}
    assert identifier == right, "%s, not %s" % (identifier, right)
