"""A strict ACME server (RFC 8555, over TLS) that breaks where a test tells it to.

    with ScriptedCA(folder, {"finalize": [problem("serverInternal", 500)]}) as ca:
        run a client with ca.directory, SSL_CERT_FILE=ca.ca_file and --acme-dir ca.challenges

or, with letsacme.py run and judged as well, trial.works({"finalize": [...]}): see Trial below.

A script maps the name of a resource to a list of faults, one for each request of it in turn, or to
one fault that meets every request. A fault is a function(request, reply) that changes the reply or
the way it is delivered; None is no fault. The resources are directory, newNonce, newAccount,
account, newOrder, authz, challenge, order, finalize, certificate and renewalInfo. The entry
"connection" of a script holds functions of the raw socket, called before the TLS handshake.

What the client does wrong is kept in ca.violations, and the end of the with block fails on it
(unless the option "forgive" is set, for a client that is given broken tools).
"""
import base64
import contextlib
import datetime
import hashlib
import hmac
import http
import http.server
import json
import os
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
import support
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

ERROR = "urn:ietf:params:acme:error:"
MISSING = Ellipsis                          # a value for put(): take the field away
CURVES = {"ES256": ("P-256", ec.SECP256R1(), hashes.SHA256(), 32),
          "ES384": ("P-384", ec.SECP384R1(), hashes.SHA384(), 48)}


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
    connection: int
    protected: dict = field(default_factory=dict)
    payload: object = None
    account: dict = None

    @property
    def resource(self):
        """The name of the resource, which is the first part of the path."""
        return self.path.split("/")[1]

    @property
    def id(self):
        """What follows the resource's name in the path."""
        return self.path.split("/", 2)[2] if self.path.count("/") > 1 else ""


def send_all(handler, data):
    """Deliver the answer as it should be."""
    handler.wfile.write(data)


@dataclass
class Reply:
    """One answer: the body is bytes, or something that is sent as JSON."""
    status: int = 200
    body: object = b""
    headers: dict = field(default_factory=dict)
    deliver: object = send_all

    def render(self, head=False):
        """Return the bytes of the answer; a header whose value is None is left out."""
        body, kind = self.body, "application/pem-certificate-chain"
        if not isinstance(body, bytes):
            body, kind = json.dumps(body).encode(), "application/json"
        headers = {"Content-Type": kind, "Content-Length": len(body), **self.headers}
        reason = http.HTTPStatus(self.status).phrase
        lines = ["HTTP/1.1 %d %s" % (self.status, reason)]
        lines += ["%s: %s" % item for item in headers.items() if item[1] is not None]
        text = "\r\n".join(lines) + "\r\n\r\n"
        return text.encode("latin-1") + (b"" if head else body)


# ---- Faults: in the words of the answer

def problem(kind, status=403, headers=None, heard=False, **more):
    """The CA refuses (if heard: though it has carried out what was asked)."""
    def fault(request, reply):
        reply.status = status
        reply.body = {"type": ERROR + kind, "detail": "as scripted", "status": status, **more}
        reply.headers.update({"Content-Type": "application/problem+json", **(headers or {})})
    fault.unheard = not heard
    return fault


def change(status=None, headers=None):
    """The answer's HTTP status or headers differ from the honest ones."""
    def fault(request, reply):
        reply.status = status or reply.status
        reply.headers.update(headers or {})
    return fault


def put(path, value):
    """One field of the answer's JSON differs; its path is such as "challenges.2.token"."""
    def fault(request, reply):
        steps = [int(step) if step.isdigit() else step for step in path.split(".")]
        body = reply.body
        for step in steps[:-1]:
            body = body[step]
        if value is MISSING:
            del body[steps[-1]]
        else:
            body[steps[-1]] = value
    return fault


def fields(**values):
    """Some fields of the answer's JSON differ."""
    return lambda request, reply: reply.body.update(values)


def replace(body, kind=None, status=None):
    """Another body: bytes, or a value that becomes JSON."""
    def fault(request, reply):
        reply.body = body
        reply.status = status or reply.status
        if kind:
            reply.headers["Content-Type"] = kind
    return fault


def redirect(target, status=302):
    """The resource is said to be elsewhere."""
    def fault(request, reply):
        reply.status, reply.body = status, b""
        reply.headers["Location"] = target
    fault.unheard = True
    return fault


def elsewhere(deliver, heard=True):
    """Make a fault of a function(handler, data) that delivers the answer in its own way."""
    def fault(request, reply):
        reply.deliver = deliver
    fault.unheard = not heard
    return fault


# ---- Faults: on the way

def reset(sock):
    """End a TCP connection by a reset, at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(sock.detach())


def hang_up(handler, data):
    """Reset the connection in place of the answer."""
    handler.close_connection = True
    reset(handler.connection)


def close_after(handler, data):
    """Answer, and close the connection without having said so."""
    handler.close_connection = True
    handler.wfile.write(data)


def close_instead(handler, data):
    """Close the connection in order, but without an answer."""
    handler.close_connection = True


def cut_short(handler, data):
    """Close in the middle of the answer."""
    handler.close_connection = True
    handler.wfile.write(data[:-max(1, len(data.split(b"\r\n\r\n", 1)[1]) // 2)])


def cut_head(handler, data):
    """Close in the middle of the answer's headers."""
    handler.close_connection = True
    handler.wfile.write(data[:40])


def stay_silent(handler, data):
    """Never answer: hold the connection until the client has left."""
    handler.close_connection = True
    while handler.connection.recv(1):
        pass


def late(seconds):
    """Answer after some time."""
    def deliver(handler, data):
        time.sleep(seconds)
        handler.wfile.write(data)
    return deliver


def drip(pace, endless):
    """Answer one byte at a time, then the endless bytes again and again."""
    def deliver(handler, data):
        while True:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(pace)
            data = endless
    return deliver


def wire(data, times=1):
    """These bytes instead of an answer, so many times, then the end of the connection."""
    def deliver(handler, honest):
        handler.close_connection = True
        for _ in range(times):
            handler.wfile.write(data)
    return deliver


def flood(length=None):
    """An answer of 50 MB, with a Content-Length or ended by the connection's end."""
    def deliver(handler, data):
        said = b"Content-Length: %d\r\n" % length if length else b"Connection: close\r\n"
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + said + b"\r\n{\"a\": \"")
        for _ in range(50):
            handler.wfile.write(b"x" * 1000000)
    return deliver


# ---- Words of ACME

def unbase64(text):
    """Decode base64url in the only form that RFC 7515 allows."""
    demand(isinstance(text, str), "base64url is a string")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else b""
    demand(base64url(data) == text, "not base64url: %.100r" % text)
    return data


def base64url(data):
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse(data, what):
    """Parse JSON that the client sent."""
    try:
        return json.loads(data)
    except ValueError:
        raise Violation("%s is not JSON: %.100r" % (what, data)) from None


def thumbprint(jwk):
    """Return the thumbprint of a key that has the required members alone (RFC 7638)."""
    text = json.dumps(jwk, sort_keys=True, separators=(",", ":"))
    return base64url(hashlib.sha256(text.encode()).digest())


def number(text, size=None):
    """Read a key's number: of an exact size, or without leading zeros."""
    data = unbase64(text)
    demand(len(data) == size if size else data[:1] > b"\0", "a number in the JWK is padded wrong")
    return int.from_bytes(data, "big")


def public_key(jwk, alg):
    """Turn a JWK into a key, if it is right for the algorithm."""
    demand(isinstance(jwk, dict), "jwk is not an object")
    if alg == "RS256":
        demand(set(jwk) == {"kty", "n", "e"} and jwk["kty"] == "RSA", "odd RSA key: %s" % jwk)
        return rsa.RSAPublicNumbers(number(jwk["e"]), number(jwk["n"])).public_key()
    demand(alg in CURVES, "unknown alg %s" % alg)
    name, curve, _, size = CURVES[alg]
    demand(set(jwk) == {"kty", "crv", "x", "y"}, "odd EC key: %s" % jwk)
    demand((jwk["kty"], jwk["crv"]) == ("EC", name), "%s with %s" % (alg, jwk))
    numbers = [number(jwk[name], size) for name in "xy"]
    return ec.EllipticCurvePublicNumbers(*numbers, curve).public_key()


def verify(key, alg, signature, data):
    """Check a signature of a JWS."""
    try:
        if alg == "RS256":
            return key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        _, _, digest, size = CURVES[alg]
        demand(len(signature) == 2 * size, "%d bytes of %s signature" % (len(signature), alg))
        pair = [int.from_bytes(part, "big") for part in (signature[:size], signature[size:])]
        return key.verify(utils.encode_dss_signature(*pair), data, ec.ECDSA(digest))
    except InvalidSignature:
        raise Violation("the signature does not match") from None


# ---- Certificates

def new_key():
    """Make a private key, the quick kind."""
    return ec.generate_private_key(ec.SECP256R1())


def pem(*certificates):
    """Return certificates as PEM."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def san(names):
    """Return the SubjectAltName of DNS names and IP addresses."""
    entries = []
    for name in names:
        try:
            entries.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            entries.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(entries)


def names_of(san_extension):
    """Return the DNS names and IP addresses of a SubjectAltName, as text."""
    return [str(entry.value) for entry in san_extension.value]


class Issuer:
    """A root, an intermediate, and what they sign."""

    def __init__(self):
        self.root_key, self.key = new_key(), new_key()
        self.root = self.sign("Scripted Root", self.root_key.public_key(), ca=True,
                              issuer=("Scripted Root", self.root_key))
        self.intermediate = self.sign("Scripted Intermediate", self.key.public_key(), ca=True,
                                      issuer=("Scripted Root", self.root_key))

    def sign(self, subject, key, names=(), ca=False, issuer=None, days=(-1, 90)):
        """Sign one certificate, valid from so many days from now until so many."""
        name, signer = issuer or ("Scripted Intermediate", self.key)
        now = datetime.datetime.now(datetime.timezone.utc)
        start, end = (now + datetime.timedelta(days=each) for each in days)
        builder = x509.CertificateBuilder(
            common_name(name), common_name(subject), key, x509.random_serial_number(), start, end)
        ski, aki = x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier
        usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
        extensions = [(x509.BasicConstraints(ca, None), True), (usage, True),
                      (ski.from_public_key(key), False),
                      (aki.from_issuer_public_key(signer.public_key()), False)]
        extensions += [(san(names), not subject)] if names else []
        for extension in extensions:
            builder = builder.add_extension(*extension)
        return builder.sign(signer, hashes.SHA256())

    def leaf(self, names, key, days=(-1, 90)):
        """Sign a certificate for these names and this public key."""
        return self.sign("", key, names, days=days)


def common_name(text):
    """Return a distinguished name that has only a common name, or nothing."""
    parts = [x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else []
    return x509.Name(parts)


def ari_id(certificate):
    """Return the identifier of a certificate for renewal information (RFC 9773)."""
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return base64url(extension.value.key_identifier) + "." + base64url(octets)


# ---- The server

class Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests and delivers the CA's replies."""
    protocol_version = "HTTP/1.1"
    timeout = 120                           # an idle connection does not outlive the tests
    disable_nagle_algorithm = True          # no answer waits for an acknowledgement

    def serve(self):
        """Have the CA answer one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers, body, self.server.connections)
        reply = self.server.ca.answer(request)
        reply.deliver(self, reply.render(head=self.command == "HEAD"))

    do_GET = do_HEAD = do_POST = serve

    def log_message(self, *_):
        """Say nothing: the CA keeps its own record."""


class Server(http.server.ThreadingHTTPServer):
    """A TLS server with one thread a connection; the handshake happens in the thread too."""
    request_queue_size = 100

    def __init__(self, ca, context):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.ca, self.context, self.connections = ca, context, 0
        self.server_bind()                  # listening comes later: until then it refuses

    def finish_request(self, request, client_address):
        """Do the handshake and serve the connection, unless the script says otherwise."""
        self.connections += 1
        fault = self.ca.next_fault("connection")
        if fault:
            fault(request)
        if request.fileno() >= 0:
            request.settimeout(Handler.timeout)
            with self.context.wrap_socket(request, server_side=True) as tls:
                super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        """A client may leave at any time; any other trouble is a fault of this file."""
        error = os.sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, UnicodeError):
            self.ca.violations.append("the scripted CA failed: %r" % error)


class ScriptedCA:
    """The CA: its state, its record, and what it answers."""

    def __init__(self, folder, script=None, **options):
        self.script, self.options = dict(script or {}), options
        self.lock, self.counts = threading.RLock(), {}
        self.requests, self.times, self.violations, self.files = [], [], [], []
        self.nonces, self.accounts, self.orders = {}, {}, []
        self.authorizations, self.issued = [], {}
        self.issuer = options.get("issuer") or Issuer()
        (folder / "challenges").mkdir(parents=True)
        self.challenges = options.get("challenges", folder / "challenges")
        self.ca_file = folder / "root.pem"
        self.ca_file.write_bytes(pem(self.issuer.root))
        self.server = Server(self, self.tls_context(folder))
        self.base = "https://localhost:%d" % self.server.server_port
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

    def tls_context(self, folder):
        """Make the server's own certificate and its TLS settings."""
        key, file = new_key(), folder / "server.pem"
        certificate = self.issuer.leaf(self.options.get("tls_names", ["localhost"]),
                                       key.public_key(), self.options.get("tls_days", (-1, 9)))
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                    serialization.NoEncryption())
        file.write_bytes(private + pem(certificate, self.issuer.intermediate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    @property
    def connections(self):
        """How many TCP connections there were."""
        return self.server.connections

    def count(self, resource):
        """How many requests of a resource there were."""
        return self.requests.count(resource)

    def pauses(self, resource):
        """The seconds between one request of a resource and the next."""
        times = [when for name, when in zip(self.requests, self.times) if name == resource]
        return [later - earlier for earlier, later in zip(times, times[1:])]

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
                reply.headers["Replay-Nonce"] = self.new_nonce()
            if fault:
                fault(request, reply)
            return reply

    def new_nonce(self):
        """Hand out a nonce."""
        nonce = secrets.token_urlsafe(16)
        self.nonces[nonce] = "fresh"
        return nonce

    def check(self, request):
        """Check all that RFC 8555 asks of any request."""
        open_resources = ("directory", "newNonce", "renewalInfo")
        demand(hasattr(self, "do_" + request.resource), "there is no such URL")
        demand(request.headers.get("Host") == self.base[8:], "Host: %s" % request.headers["Host"])
        agent = request.headers.get("User-Agent", "")
        demand(agent and not agent.lower().startswith("python"), "User-Agent: %r" % agent)
        if request.resource in open_resources:
            demand(request.method in ("GET", "HEAD"), "is to be fetched with GET")
            demand(not request.body, "a GET with a body")
        else:
            demand(request.method == "POST", "is to be fetched with POST")
            self.check_jws(request)

    def check_jws(self, request):
        """Check the JWS of a request and keep what it says."""
        demand(request.headers.get("Content-Type") == "application/jose+json",
               "Content-Type: %s" % request.headers.get("Content-Type"))
        jws = parse(request.body, "the body")
        demand(isinstance(jws, dict) and set(jws) == {"protected", "payload", "signature"},
               "the JWS is to have protected, payload and signature")
        protected = parse(unbase64(jws["protected"]), "the protected header")
        demand(isinstance(protected, dict), "the protected header is no object")
        request.protected = protected
        by = "jwk" if request.resource == "newAccount" else "kid"
        demand(set(protected) == {"alg", "nonce", "url", by}, "protected: %s" % sorted(protected))
        demand(protected["url"] == self.base + request.path, "url is %s" % protected["url"])
        self.check_nonce(protected["nonce"])
        key = self.key_of(request, by)
        verify(key, protected["alg"], unbase64(jws["signature"]),
               ("%s.%s" % (jws["protected"], jws["payload"])).encode())
        payload = unbase64(jws["payload"])
        request.payload = parse(payload, "the payload") if payload else None
        demand(request.payload is None or isinstance(request.payload, dict), "odd payload")

    def check_nonce(self, nonce):
        """A nonce is good once; one that was never handed out, or is repeated, is wrong."""
        state = self.nonces.get(nonce, "unknown")
        self.nonces[nonce] = "used"
        demand(state == "fresh", "the nonce was %s" % state)

    def key_of(self, request, by):
        """Return the key that the request has to be signed with."""
        protected = request.protected
        if by == "jwk":
            return public_key(protected["jwk"], protected["alg"])
        account = self.accounts.get(protected["kid"])
        if not account:
            raise Refused("accountDoesNotExist", "there is no account %s" % protected["kid"])
        request.account = account
        return public_key(account["jwk"], protected["alg"])

    # -- directory, nonces, accounts

    def do_directory(self, request):
        """The directory."""
        names = ["newNonce", "newAccount", "newOrder", "keyChange", "revokeCert", "renewalInfo"]
        if not self.options.get("renewal", True):
            names.remove("renewalInfo")
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
        url = "%s/account/%s" % (self.base, thumbprint(jwk))
        if url in self.accounts:
            return self.account_reply(url, 200)
        if payload.get("onlyReturnExisting"):
            raise Refused("accountDoesNotExist", "no such account")
        if not payload.get("termsOfServiceAgreed"):
            raise Refused("userActionRequired", "the terms are to be agreed to", 403)
        if self.options.get("eab"):
            self.check_eab(payload.get("externalAccountBinding"), jwk)
        contact = payload.get("contact", [])
        demand(isinstance(contact, list), "contact is no list")
        self.accounts[url] = {"jwk": jwk, "url": url, "contact": contact}
        return self.account_reply(url, 201)

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
        data = ("%s.%s" % (jws["protected"], jws["payload"])).encode()
        right = hmac.digest(self.options["eab"].get(protected["kid"], b"?"), data, "sha256")
        if not hmac.compare_digest(right, unbase64(jws["signature"])):
            raise Refused("unauthorized", "the external account is unknown", 403)

    def account_reply(self, url, status):
        """Show an account."""
        body = {"status": "valid", "contact": self.accounts[url]["contact"],
                "orders": url + "/orders"}
        return Reply(status, body, {"Location": url})

    def do_account(self, request):
        """Show or change an account."""
        demand(request.protected["kid"] == self.base + request.path, "not this client's account")
        request.account.update(request.payload or {})
        return self.account_reply(request.account["url"], 200)

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
        order["authorizations"] = [self.new_authorization(order, each)
                                   for each in reversed(order["identifiers"])]
        self.orders.append(order)
        self.settle(order)
        return self.order_reply(order, 201)

    def new_authorization(self, order, identifier):
        """Make a pending authorization with a challenge."""
        token = self.options.get("token", secrets.token_urlsafe(24))
        state = "valid" if self.options.get("reuse") else "pending"
        authorization = {"id": len(self.authorizations), "account": order["account"],
                         "order": order, "identifier": identifier, "status": state,
                         "token": token, "challenge": state, "error": None}
        self.authorizations.append(authorization)
        return authorization

    def order_reply(self, order, status=200):
        """Show an order."""
        url = "%s/order/%d" % (self.base, order["id"])
        body = {"status": order["status"], "identifiers": order["identifiers"],
                "expires": "2099-01-01T00:00:00Z",
                "authorizations": ["%s/authz/%d" % (self.base, each["id"])
                                   for each in order["authorizations"]],
                "finalize": "%s/finalize/%d" % (self.base, order["id"])}
        if order["status"] == "valid":
            body["certificate"] = "%s/certificate/%d" % (self.base, order["id"])
        if order.get("error"):
            body["error"] = order["error"]
        return Reply(status, body, {"Location": url} if status == 201 else {})

    def do_authz(self, request):
        """Show an authorization; it has challenges that are of no use to an http-01 client."""
        demand(request.payload is None, "an authorization is only to be read")
        authorization = self.mine(request, self.authorizations)
        if authorization["challenge"] == "processing":
            self.get_on(authorization["order"])
        body = {"identifier": authorization["identifier"], "status": authorization["status"],
                "expires": "2099-01-01T00:00:00Z", "future": {"field": [1]},
                "challenges": [{"type": "dns-persist-01", "url": self.base + "/never/1",
                                "status": "pending", "issuer-domain-names": ["localhost"]},
                               {"type": "dns-01", "url": self.base + "/never/2",
                                "status": "pending", "token": authorization["token"]},
                               self.challenge_body(authorization)]}
        return Reply(body=body)

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
        wanted = "%s.%s" % (authorization["token"], thumbprint(authorization["account"]["jwk"]))
        file = self.challenges / authorization["token"]
        try:
            self.files.append((file.name, file.lstat().st_mode))
            if file.read_text() == wanted:
                return None
            detail = "the file does not hold what it should"
        except OSError as error:
            detail = "the file cannot be read: %s" % error
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
        answered = [each for each in order["authorizations"] if each["challenge"] != "pending"]
        for each in answered:
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
        """Tell when a certificate is to be renewed: the last third of its life, or as told."""
        demand(re.match(r"[\w-]+\.[\w-]+\Z", request.id), "odd identifier %s" % request.id)
        window = self.options.get("window")
        if request.id not in self.issued and not window:
            raise Refused("malformed", "there is no such certificate", 404)
        if not window:
            leaf = self.issued[request.id]
            start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            window = (start + (end - start) * 2 / 3, end - (end - start) / 4)
        texts = [each.strftime("%Y-%m-%dT%H:%M:%SZ") for each in window]
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
        names |= set(names_of(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)))
    return {name.lower() for name in names}


# ---- Trials of letsacme.py

OLD = b"what was there before\n"
# Control characters, other line ends, changes of the direction of writing
HARMFUL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe]")
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"  # a key for EAB, which nobody may ever see


def snapshot(folder):
    """What a folder holds: the mode of everything, and its content or target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else None
        if content is None and path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (oct(path.lstat().st_mode), content)
    return found


def refusals(err):
    """The error lines of a log."""
    return [line for line in err.splitlines() if line.startswith("E: ")]


class Trial:
    """Runs letsacme.py against scripted CAs and judges what it says and what it leaves behind.

    It works in the folder `site`, which holds a challenge directory and two old outputs; it also
    prints. `options` are its command line: a test may change them (None takes one away).
    """

    def __init__(self, letsacme, folder, account, key, csr):
        self.letsacme, self.folder, self.key = letsacme, folder, key
        self.names = ["www.site.example", "site.example"]
        self.site = folder / "site"
        self.challenges = self.site / "challenges"
        self.challenges.mkdir(parents=True)
        self.cert, self.chain = self.site / "cert.pem", self.site / "chain.pem"
        for output in (self.cert, self.chain):
            output.write_bytes(OLD)
            output.chmod(0o640)
        self.options = {"--account-key": account, "--csr": csr(self.names, key=key),
                        "--acme-dir": self.challenges, "--disable-check": True,
                        "--cert-file": self.cert, "--chain-file": self.chain}

    def arguments(self, changes=None):
        """The command line."""
        words = []
        for name, value in {**self.options, **(changes or {})}.items():
            words += [name] if value is True else [name, value] if value is not None else []
        return words

    @contextlib.contextmanager
    def serve(self, script=None, **options):
        """A scripted CA that validates in the challenge directory."""
        folder = self.folder / support.fresh_name("ca")
        options.setdefault("challenges", self.challenges)
        with ScriptedCA(folder, script, **options) as ca:
            yield ca

    def run(self, script=None, args=None, ca=None, scale=0.05, timeout=60, changed=(), **run):
        """Run it to its end; args are changed options, ca are options of the scripted CA.

        `changed` names what else in the site may differ afterwards, which is the test's to check.
        """
        before = snapshot(self.site)
        with self.serve(script, **(ca or {})) as server:
            result = self.letsacme(*self.arguments(args), ca=server, scale=scale, timeout=timeout,
                                   **run)
        result.ca = server
        outputs = ["cert.pem", "chain.pem"] if result.status == 0 else []
        self.judge(result.err, before, [*changed, *outputs])
        assert bool(refusals(result.err)) == (result.status != 0), result.err
        return result

    def judge(self, err, before, changed=()):
        """Whatever happened: readable words, no secret, no file that should not be there."""
        assert not HARMFUL.search(err) and max(map(len, err.split("\n"))) < 5000, err
        assert "PRIVATE KEY" not in err and SECRET not in err
        states = [before, snapshot(self.site)]
        for name in changed:
            for state in states:
                state.pop(name, None)
        assert states[1] == states[0]

    def works(self, script=None, **run):
        """It gets the certificate in spite of all."""
        result = self.run(script, **run)
        assert result.status == 0, result.err
        leaf = support.load_chain(result.out)[0]
        assert {name.lower() for name in support.names_of(leaf)} >= set(self.names)
        public = support.load_key(self.key).public_key()
        assert support.public_der(leaf.public_key()) == support.public_der(public)
        if not run.get("args"):
            assert result.out.encode() == self.cert.read_bytes() + self.chain.read_bytes()
        return result

    def fails(self, script=None, *words, status=1, scale=0.01, **run):
        """It ends with this status and says these words in its errors."""
        result = self.run(script, scale=scale, **run)
        assert result.status == status, result.err
        said = "\n".join(refusals(result.err))
        assert all(word in said for word in words), result.err
        return result

    def ends(self, script=None, **run):
        """It ends in order, well or not."""
        result = self.run(script, **run)
        assert result.status in (0, 1), result.err
        return result


@pytest.fixture
def trial(letsacme, tmp_path, account, key, csr):
    """A Trial: trial.works(script), trial.fails(script, "words"), trial.ends(script)."""
    return Trial(letsacme, tmp_path, account, key(), csr)
