"""What becomes of a run when the network or the CA fails, or when the CA lies.

Every case ends in bounded time, with the certificate or with a readable error; scripted_ca.Trial
checks that: no traceback, nothing printed and no output changed on failure, no challenge file left,
no control character and no secret in the log, and no request that RFC 8555 does not allow.
"""
import base64
import contextlib
import email.utils
import re
import socket
import time

import pytest
import scripted_ca
import support
from scripted_ca import (MISSING, Issuer, ScriptedCA, change, elsewhere, fields, new_key, pem,
                         problem, put, redirect, replace, wire)

trial = scripted_ca.trial
core = pytest.mark.core

RESOURCES = ["directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order",
             "finalize", "certificate"]
SIGNED = RESOURCES[2:]
JSON = [name for name in RESOURCES if name not in ("newNonce", "certificate")]
NEEDED = ["directory", "newOrder", "authz", "order"]    # no certificate without their JSON


def cases(table):
    """Parametrise by the values of a table, named by its keys; the first case is a core one."""
    return [pytest.param(value, id=name, marks=[core] * (number == 0))
            for number, (name, value) in enumerate(table.items())]


# ---- Network

LOST = {
    "reset-after-it-was-done": elsewhere(scripted_ca.hang_up),
    "reset-before": elsewhere(scripted_ca.hang_up, heard=False),
    "closed-before": elsewhere(scripted_ca.close_instead, heard=False),
    "closed-after-the-answer": elsewhere(scripted_ca.close_after),
    "cut-short": elsewhere(scripted_ca.cut_short),
    "no-answer": elsewhere(scripted_ca.stay_silent),
    "no-answer-before": elsewhere(scripted_ca.stay_silent, heard=False),
    "500": problem("serverInternal", 500),
    "500-though-it-was-done": problem("serverInternal", 500, heard=True),
    "502-html": replace(b"<html>Bad gateway</html>", "text/html", 502),
}


@pytest.mark.parametrize("fault", ["reset-after-it-was-done", "closed-after-the-answer",
                                   "cut-short", "500"])
@pytest.mark.parametrize("resource", RESOURCES)
def test_one_answer_is_lost(trial, resource, fault):
    """Whichever request it was."""
    trial.works({resource: [LOST[fault]]})


@pytest.mark.parametrize("fault", cases(LOST))
def test_one_answer_of_each_kind_is_lost(trial, fault):
    """Whether or not the CA has carried out what was asked."""
    trial.works({resource: [fault] for resource in RESOURCES})


@pytest.mark.parametrize("fault", cases({
    "closed-after-each-answer": elsewhere(scripted_ca.close_after),
    "late": elsewhere(scripted_ca.late(0.1)),
}))
def test_every_answer_is_odd(trial, fault):
    """A connection that is never kept, a CA that is slow."""
    trial.works({resource: fault for resource in RESOURCES})


@pytest.mark.parametrize("resource, fault", [
    *((resource, "no-answer-before") for resource in RESOURCES), ("directory", "reset-before"),
    ("newOrder", "closed-before"), ("finalize", "500"), ("newNonce", "500")])
def test_every_request_is_lost(trial, resource, fault):
    """A run that cannot succeed ends by itself."""
    trial.fails({resource: LOST[fault]})


@pytest.mark.parametrize("resource", ["newNonce", "challenge", "finalize", "certificate"])
@pytest.mark.parametrize("fault", cases({
    "cut-short": LOST["cut-short"], "no-answer": LOST["no-answer"],
    "cut-in-the-headers": elsewhere(scripted_ca.cut_head)}))
def test_every_answer_is_lost(trial, resource, fault):
    """That is no obstacle where the order tells what has come of the request."""
    trial.ends({resource: fault}, scale=0.01)


@core
def test_the_ca_comes_up_later(trial):
    """At first nothing listens."""
    trial.works(ca={"down": 0.5})


@core
def test_the_ca_stays_down(trial):
    """Nothing listens at all."""
    trial.fails(None, "localhost", ca={"down": 1000})


@pytest.mark.parametrize("options", cases({
    "another-name": {"tls_names": ["other.example"]},
    "expired": {"tls_days": (-9, -1)},
    "not-yet-valid": {"tls_days": (1, 9)},
}))
def test_the_tls_certificate_is_wrong(trial, options):
    """That is final: one connection, no request."""
    result = trial.fails(None, "ertificate", ca=options)
    assert (result.ca.connections, result.ca.requests) == (1, [])


@core
def test_the_tls_certificate_is_not_trusted(trial, tmp_path):
    """An unknown root is final too."""
    other = tmp_path / "other.pem"
    other.write_bytes(pem(Issuer().root))
    result = trial.fails(None, "certificate", env={"SSL_CERT_FILE": str(other)})
    assert (result.ca.connections, result.ca.requests) == (1, [])


def plain(sock):
    """Speak HTTP without TLS."""
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    sock.close()


def mute(sock):
    """Take what comes, say nothing."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass
    sock.close()


HANDSHAKES = {"reset": scripted_ca.reset, "closed": socket.socket.close, "plain-http": plain,
              "no-answer": mute}


@pytest.mark.parametrize("fault", cases(HANDSHAKES))
def test_the_handshake_fails_twice(trial, fault):
    """Trouble in the handshake passes."""
    trial.works({"connection": [fault, fault]})


@pytest.mark.parametrize("fault", cases(HANDSHAKES))
def test_the_handshake_always_fails(trial, fault):
    """Or it does not pass."""
    trial.fails({"connection": fault})


def spoken(head, endless, pace=0.02):
    """Say the head slowly, then the endless bytes for ever, a byte at a time."""
    drip = scripted_ca.drip(pace, endless)
    return elsewhere(lambda handler, data: drip(handler, head))


@pytest.mark.parametrize("fault", cases({
    "body": spoken(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "header": spoken(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "status-line": spoken(b"H", b"T"),
    "chunks": spoken(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "100-continue": spoken(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}))
def test_an_answer_drips_for_ever(trial, fault):
    """A byte a second never runs into a socket's timeout: the bound of the whole run ends it."""
    assert "newOrder" in trial.fails({"newOrder": fault}, scale=0.003).ca.requests


@pytest.mark.parametrize("resource", ["directory", "newNonce", "certificate"])
@pytest.mark.parametrize("length", [50000010, None])
def test_an_answer_of_50_megabytes(trial, resource, length):
    """No answer is read to an end that far away."""
    if resource == "newNonce":              # a HEAD has no body, whatever is sent
        trial.ends({resource: elsewhere(scripted_ca.flood(length))}, scale=0.01)
    else:
        trial.fails({resource: elsewhere(scripted_ca.flood(length))})


@pytest.mark.parametrize("data", [
    b"", b"\0" * 1000, b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n{}",
    b"HTTP/1.1 99999 OK\r\n\r\n{}", b"HTTP/1.1 -1 OK\r\n\r\n{}", b"SSH-2.0-OpenSSH_9.9\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100000 + b"\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n: \r\n\xff\xfe\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
])
def test_this_is_not_http(trial, data):
    """Answers that no web server should give."""
    trial.fails({"newOrder": elsewhere(wire(data))})


# ---- Protocol: refusals

BAD_NONCE = problem("badNonce", 400)


@pytest.mark.parametrize("resource", SIGNED)
def test_a_nonce_is_refused(trial, resource):
    """The error brings the next nonce, so there is no need to ask for one."""
    assert trial.works({resource: [BAD_NONCE]}).ca.count("newNonce") == 1


@core
def test_nonces_are_refused_at_every_request(trial):
    """Several in a row, everywhere."""
    trial.works({resource: [BAD_NONCE] * 4 for resource in SIGNED})


def test_twenty_nonces_are_refused(trial):
    """So many are borne."""
    trial.works({"newOrder": [BAD_NONCE] * 20})


@pytest.mark.parametrize("resource", ["newAccount", "order"])
def test_all_nonces_are_refused(trial, resource):
    """No tight loop."""
    assert trial.fails({resource: BAD_NONCE}, "badNonce").ca.count(resource) < 50


@pytest.mark.parametrize("nonce", cases({
    "none": None, "not-base64url": "not a nonce!", "empty": "", "escapes": "\x1b[31m"}))
def test_an_answer_brings_no_good_nonce(trial, nonce):
    """Clients must ignore an invalid one (RFC 8555, 6.5.1), and can ask for another."""
    trial.works({resource: [change(headers={"Replay-Nonce": nonce})] for resource in SIGNED})


def date(seconds):
    """Return an HTTP date so many seconds from now."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", cases({
    "seconds": lambda: "1", "zero": lambda: "0", "date": lambda: date(1),
    "past": lambda: date(-1000)}))
def test_the_ca_is_busy(trial, status, after):
    """What it says about when to come back is done."""
    trial.works({"newOrder": [problem("rateLimited", status, {"Retry-After": after()})]})


@pytest.mark.parametrize("after", ["soon", "-5", "1.5", "1e9", "99999999999999999999", "", "\xb2",
                                   "Fri, 99 Foo 2026 99:99:99 GMT", "Sun, 06 Nov 0000 08:49:37 GMT",
                                   "Fri, 31 Dec 99999 23:59:59 GMT", None])
def test_the_ca_is_busy_for_nonsense(trial, after):
    """A header that says nothing stops nothing; with one that is beyond reason, the run may end."""
    unreasonable = re.search("9999|1e9|\xb2", after or "")
    fault = problem("rateLimited", 503, {"Retry-After": after})
    (trial.ends if unreasonable else trial.works)({"newOrder": [fault]})


@pytest.mark.parametrize("resource", ["newOrder", "order"])
@pytest.mark.parametrize("after", cases({
    "seconds": lambda: "604800", "date": lambda: date(604800)}))
def test_the_ca_is_busy_for_a_week(trial, resource, after):
    """That is an error at once, which says when to come back."""
    fault = problem("rateLimited", 429, {"Retry-After": after()}, detail="too many of these")
    result = trial.fails({resource: fault}, "too many of these", scale=1)
    assert re.search(r"60479\d|604800|\b7 days|168 h|\d{4}-\d\d-\d\d", result.err)
    assert result.ca.count(resource) == 1


@core
def test_retry_after_is_obeyed_on_polling(trial):
    """On the order, and on the answer to finalize."""
    slow = change(headers={"Retry-After": "20"})
    result = trial.works({"order": [slow], "finalize": [slow]}, ca={"validation": 2})
    pause = 20 * 0.05
    assert result.ca.pauses("order")[0] > pause * 0.9
    finalize = result.ca.requests.index("finalize")
    assert result.ca.times[finalize + 1] - result.ca.times[finalize] > pause * 0.9


@core
def test_an_hour_of_polling_is_too_long(trial):
    """A validation is given ten minutes."""
    fault = change(headers={"Retry-After": "3600"})
    assert trial.fails({"order": fault}, scale=1, ca={"validation": 9}).ca.count("order") == 1


@pytest.mark.parametrize("resource, kind", [
    ("newAccount", "unauthorized"), ("finalize", "orderNotReady"), ("finalize", "malformed"),
    ("challenge", "malformed"), ("finalize", "badCSR")])
def test_an_error_though_it_worked(trial, resource, kind):
    """Its answer was lost: the repeated request is refused, but the order goes on."""
    lost = elsewhere(scripted_ca.hang_up)
    refused = problem(kind, 403)
    script = {resource: [lost, refused]} if resource != "newAccount" else {resource: [lost]}
    trial.works(script)


ERRORS = """accountDoesNotExist alreadyReplaced alreadyRevoked badCSR badPublicKey
    badRevocationReason badSignatureAlgorithm caa compound connection dns
    externalAccountRequired incorrectResponse invalidContact invalidProfile malformed
    orderNotReady rateLimited rejectedIdentifier tls unauthorized unsupportedContact
    unsupportedIdentifier userActionRequired noSuchError""".split()


@pytest.mark.parametrize("number, kind", [pytest.param(*each, marks=[core] * (each[0] == 0))
                                          for each in enumerate(ERRORS)])
def test_every_error_type(trial, number, kind):
    """The CA's own words are shown, and a refusal is not asked for again."""
    resource = ["newAccount", "newOrder", "authz", "finalize"][number % 4]
    detail = "The CA's own w\xf6rds about " + kind
    result = trial.fails({resource: problem(kind, 403, detail=detail)}, kind)
    assert detail in result.err or detail.replace("\xf6", "\\xf6") in result.err
    assert result.ca.count(resource) == 1


@core
def test_subproblems(trial):
    """Each is shown with its name."""
    parts = [{"type": scripted_ca.ERROR + "caa", "detail": "forbidden by CAA %d" % number,
              "identifier": {"type": "dns", "value": "n%d.example" % number}} for number in (1, 2)]
    trial.fails({"newOrder": problem("compound", 403, subproblems=parts)}, "as scripted",
                "n1.example", "forbidden by CAA 1", "n2.example", "forbidden by CAA 2")


@pytest.mark.parametrize("body", [
    {}, {"type": 7, "detail": ["x"]}, {"detail": None}, {"type": None, "detail": {"a": 1}}, [],
    None, "text", 7, b"<html>", b"", b"\xff\xfe", {"detail": "x" * 100000}, {"type": "x" * 100000},
    {"subproblems": "no"}, {"subproblems": [1, None, {"identifier": 5}]}, {"subproblems": {"a": 1}},
    {"subproblems": [{"detail": "y" * 3000}] * 100}, {"status": "pending"}, {"status": "valid"},
    {"subproblems": [{"identifier": {"value": 5}, "detail": 5, "type": 5}]}],
    ids=lambda body: repr(body)[:40])
def test_a_problem_of_an_odd_shape(trial, body):
    """An error is an error."""
    trial.fails({"newOrder": replace(body, "application/problem+json", 403)})


def test_the_account_is_deactivated(trial):
    """The CA refuses at the start, or at the first order."""
    dead = problem("unauthorized", 401, detail="Account is deactivated")
    trial.fails({"newAccount": dead}, "deactivated")
    trial.fails({"newAccount": fields(status="deactivated"), "newOrder": dead}, "deactivated")


def test_the_terms_have_changed(trial):
    """The CA says where to agree."""
    words = "the terms have changed: see https://ca.example/terms"
    trial.fails({"newOrder": problem("userActionRequired", 403, detail=words,
                                     instance="https://ca.example/terms")}, words)


@core
def test_a_wrong_binding_is_not_shown(trial):
    """The CA refuses the external account; its key stays secret."""
    trial.fails(None, "external account", ca={"eab": {"me": b"another key"}},
                args={"--eab-kid": "me", "--eab-hmac-key": scripted_ca.SECRET})


# ---- Protocol: states

STATES = ["pending", "ready", "processing", "valid", "invalid", "dancing", 7, None, [], {}]


@pytest.mark.parametrize("status", STATES, ids=str)
def test_the_order_is_stuck(trial, status):
    """However often one looks: the run ends."""
    trial.fails({"order": fields(status=status)}, scale=0.005)


@pytest.mark.parametrize("status", STATES, ids=str)
@pytest.mark.parametrize("resource", ["newOrder", "finalize"])
def test_an_answer_has_an_odd_order(trial, resource, status):
    """What the CA says first need not fit what it says later."""
    trial.ends({resource: fields(status=status)}, scale=0.005)


@pytest.mark.parametrize("status", ["invalid", "deactivated", "expired", "revoked", "dancing"])
def test_an_authorization_is_over(trial, status):
    """What can be proved with it is for the CA to say."""
    trial.ends({"authz": fields(status=status)}, scale=0.01)


@core
def test_the_validation_fails(trial):
    """The CA cannot read the files: each name is reported with the CA's words."""
    trial.fails(None, *trial.names, "cannot be read", ca={"challenges": trial.folder / "nowhere"})


def test_the_issuance_fails(trial):
    """An order that becomes invalid says why."""
    why = {"type": scripted_ca.ERROR + "caa", "detail": "CAA forbids it"}
    trial.fails({"order": [None, fields(status="invalid", error=why)]}, "CAA forbids it")


@core
def test_a_pending_challenge_has_an_error(trial):
    """Some CAs say at once what they could not fetch, and then wait: that is the end, at once."""
    error = {"type": scripted_ca.ERROR + "connection", "detail": "no route to your host"}
    script = {"challenge": fields(status="pending", error=error),
              "authz": [None, None] + [put("challenges.2.error", error)] * 2}
    result = trial.fails(script, "no route to your host", scale=1)
    assert result.ca.count("finalize") == 0


@core
def test_the_names_are_proved_already(trial):
    """Valid authorizations and orders that are ready need no challenge."""
    assert not trial.works(ca={"reuse": True}).ca.count("challenge")


@pytest.mark.parametrize("polls", [0, 4])
def test_the_pace_of_the_ca(trial, polls):
    """Validation and issuance take no time, or some."""
    trial.works(ca={"validation": polls, "issuance": polls})


# ---- Protocol: shapes

BODIES = {
    "list": ["x"], "string": "x", "number": 7, "null": None, "true": True, "empty-object": {},
    "html": b"<html><body>It works!</body></html>", "nothing": b"",
    "not-utf8": b"{\"a\": \"\xff\"}",
    "deep": b"[" * 200000, "deep-objects": b"{\"a\":" * 100000, "huge-number": b"9" * 100000,
    "nan": b"{\"status\": NaN}", "cut": b"{\"status\": \"val", "utf16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("resource, body", [
    *(pytest.param("order", body, marks=[core] * (body == "list")) for body in BODIES),
    *((resource, body) for resource in JSON for body in ("null", "html", "empty-object"))])
def test_an_answer_is_no_object(trial, resource, body):
    """Where the answer is needed, the error names its URL."""
    result = trial.ends({resource: replace(BODIES[body])}, scale=0.005)
    if resource in NEEDED:
        assert result.status == 1 and "https://localhost" in result.err


FIELDS = """directory.newNonce directory.newAccount directory.newOrder directory.meta
    newOrder.status newOrder.authorizations newOrder.finalize newOrder.identifiers
    authz.status authz.identifier authz.identifier.value authz.identifier.type authz.challenges
    authz.challenges.0 authz.challenges.0.type authz.challenges.2 authz.challenges.2.type
    authz.challenges.2.url authz.challenges.2.status challenge.status challenge.url challenge.token
    order.status order.finalize order.authorizations order.certificate
    finalize.status finalize.certificate""".split()


@pytest.mark.parametrize("value", cases({"missing": MISSING, "list": [7]}))
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_odd(trial, field, value):
    """Missing, or of another type (test_fuzz.py tries more), also where it is of no interest."""
    resource, path = field.split(".", 1)
    honest = [None] * field.endswith("certificate")     # it comes with the second look
    trial.ends({resource: [*honest, *[put(path, value)] * 50]}, scale=0.005)


@pytest.mark.parametrize("resource", ["newAccount", "newOrder"])
@pytest.mark.parametrize("location", [None, "", "x", "http://localhost/", "https://localhost:1/\x1b"])
def test_a_new_object_has_no_good_url(trial, resource, location):
    """A Location that is missing, or not a URL to go on with."""
    trial.fails({resource: change(headers={"Location": location})})


def test_fields_and_statuses_of_the_future(trial):
    """What is not known is ignored."""
    more = {"future": {"a": [1, None]}, "x": "y"}
    trial.works({resource: fields(**more) for resource in JSON})
    trial.works({"newAccount": change(status=202), "newOrder": change(status=200)})


@pytest.mark.parametrize("resource, status", [
    *((resource, 302) for resource in RESOURCES),
    *(("newOrder", status) for status in (301, 303, 307, 308))])
def test_redirects(trial, resource, status):
    """No CA redirects: nothing is followed."""
    with watched_port() as (port, visits):
        trial.fails({resource: redirect("http://127.0.0.1:%d/" % port, status)})
        assert not visits()


@contextlib.contextmanager
def watched_port():
    """A port of a plain server, and a function that counts its visitors."""
    def visits():
        count = 0
        with contextlib.suppress(BlockingIOError):
            while server.accept():
                count += 1
        return count
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1], visits


# ---- Lies

PLACES = ["directory.newNonce", "directory.newAccount", "directory.newOrder",
          "newOrder.authorizations.0", "authz.challenges.2.url", "order.finalize",
          "order.certificate"]


URLS = ["http://127.0.0.1:PORT/x", "", "https://[::1", "https://localhost/x\r\nHost: y",
        "ftp://127.0.0.1:PORT/x", "file:///etc/passwd", "//127.0.0.1:PORT/x", "/relative",
        "https:///x", "https://localhost:99999/x", "https://localhost:port/x",
        "https://localhost/a b", "https://localhost/\x1b[31m", "https://localhost:1\n/x",
        "https://\u043a\u043b\u044e\u0447/", "https://127.0.0.1:PORT/x",
        "https://user:secret@127.0.0.1:PORT/"]


@pytest.mark.parametrize("place, url", [
    *(("directory.newOrder", url) for url in URLS),
    *((place, url) for place in PLACES for url in URLS[:4] if place != "directory.newOrder")])
def test_a_url_is_bad(trial, place, url):
    """Not https, not a URL, or on a host that has no TLS: nothing is sent there in clear."""
    resource, path = place.split(".", 1)
    with watched_port() as (port, visits):
        result = trial.fails({resource: put(path, url.replace("PORT", str(port)))}, scale=0.005)
        assert url.startswith("https://") or not visits()
    assert place == "order.certificate" or not result.ca.count("finalize")


def test_a_url_on_another_host(trial, tmp_path):
    """A CA may have several hosts, but each needs a certificate that is trusted."""
    with ScriptedCA(tmp_path / "other") as other:
        elsewhere_too = put("newOrder", other.base + "/newOrder")
        result = trial.fails({"directory": elsewhere_too}, "certificate")
        assert (other.requests, other.connections) == ([], 1)
        assert result.ca.count("newOrder") == 0


ISSUER = Issuer()
NAMES = ["www.site.example", "site.example"]


def leaf(key=None, names=NAMES):
    """A function of the trial that gives a certificate for its key, or another."""
    return lambda trial: ISSUER.leaf(names, key or support.load_key(trial.key).public_key())


def block(data):
    """A block of PEM that says it is a certificate."""
    return (b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data)
            + b"-----END CERTIFICATE-----\n")


GOOD, INTERMEDIATE = leaf(), pem(ISSUER.intermediate)
WRONG = {
    "another-key": lambda trial: pem(leaf(new_key().public_key())(trial)) + INTERMEDIATE,
    "a-name-is-missing": lambda trial: pem(leaf(names=NAMES[:1])(trial)) + INTERMEDIATE,
    "no-name": lambda trial: pem(leaf(names=[])(trial)) + INTERMEDIATE,
    "other-names": lambda trial: pem(leaf(names=["evil.example"])(trial)) + INTERMEDIATE,
    "the-chain-comes-first": lambda trial: INTERMEDIATE + pem(GOOD(trial)),
    "no-leaf": lambda trial: INTERMEDIATE,
    "the-chain-is-cut": lambda trial: (pem(GOOD(trial)) + INTERMEDIATE)[:-100],
    "the-chain-is-no-base64": lambda trial: pem(GOOD(trial)) + block(b"").replace(b"\n-", b"\n!-"),
    "the-chain-is-garbled": lambda trial: pem(GOOD(trial)) + block(b"nothing of the kind"),
    "the-chain-is-empty": lambda trial: pem(GOOD(trial)) + block(b""),
    "a-byte-is-missing": lambda trial: block(der(GOOD(trial))[:-1]) + INTERMEDIATE,
    "bytes-follow": lambda trial: block(der(GOOD(trial)) + b"\0\0") + INTERMEDIATE,
    "garbled": lambda trial: block(b"\x30\x82\xff\xff" + der(GOOD(trial))) + INTERMEDIATE,
    "deep": lambda trial: block(b"\x30\x80" * 5000) + INTERMEDIATE,
    "der": lambda trial: der(GOOD(trial)),
    "html": lambda trial: b"<html>",
    "empty": lambda trial: b"",
    "json": lambda trial: {"certificate": "none"},
    "a-private-key-follows": lambda trial: pem(GOOD(trial)) + trial.key.read_bytes(),
}


def der(certificate):
    """A certificate as DER."""
    return certificate.public_bytes(scripted_ca.serialization.Encoding.DER)


@pytest.mark.parametrize("body", cases(WRONG))
def test_a_wrong_certificate(trial, body):
    """It is not accepted, and what was there stays."""
    trial.fails({"certificate": replace(body(trial))}, ca={"issuer": ISSUER})


@pytest.mark.parametrize("body", cases({
    "more-names": lambda trial: pem(leaf(names=NAMES + ["more.example"])(trial)) + INTERMEDIATE,
    "upper-case": lambda trial: pem(leaf(names=[n.upper() for n in NAMES])(trial)) + INTERMEDIATE,
    "a-long-chain": lambda trial: pem(GOOD(trial)) + INTERMEDIATE * 5,
    "crlf": lambda trial: (pem(GOOD(trial)) + INTERMEDIATE).replace(b"\n", b"\r\n"),
    "blank-lines": lambda trial: pem(GOOD(trial)) + b"\n" + INTERMEDIATE + b"\n",
    "no-chain": lambda trial: pem(GOOD(trial)),
}))
def test_an_unusual_certificate(trial, body):
    """What is odd about it does no harm: it is printed and written in the usual form."""
    sent = body(trial)
    result = trial.works({"certificate": replace(sent)}, ca={"issuer": ISSUER})
    assert result.out.encode() == pem(*scripted_ca.x509.load_pem_x509_certificates(sent))


@pytest.mark.parametrize("token", [
    "../" + "A" * 40, "../../../" + "A" * 40, "/" + "A" * 40, "A" * 20 + "/" + "A" * 20,
    "A" * 40 + "/", "A" * 30 + "\0", "A" * 30 + "\n", "\n" + "A" * 30, "A" * 10000, "A" * 21, "",
    ".", "..", "~" * 30, "A" * 30 + " ", "A" * 30 + "=", "A" * 30 + ".", "\xe9" * 30, "\uff21" * 30,
    "$(id)" * 9, "%2e" * 20, None, 7, ["A" * 30], {"A" * 30: 1}, True],
    ids=lambda token: repr(token)[:30])
def test_a_token_is_unsafe(trial, token):
    """It never becomes part of a path."""
    result = trial.fails({"authz": put("challenges.2.token", token)})
    assert result.ca.count("challenge") == 0


@core
def test_an_authorization_for_another_name(trial):
    """Nothing is written or answered for it."""
    fault = put("identifier.value", "victim.example")
    assert trial.fails({"authz": [None, fault]}, "victim.example").ca.count("challenge") == 0


def test_there_is_no_http_challenge(trial):
    """Then there is nothing to be done."""
    no_http = put("challenges.2", MISSING)
    assert trial.fails({"authz": no_http}, "authz").ca.count("challenge") == 0


ESCAPES = "\x1b[31mred\x1b]0;\x07\r\n\0\x08\x7f\x9b5m\u202eabc\u2028\u2066\ud800E: no\x85"


@pytest.mark.parametrize("script", cases({
    "detail": {"newOrder": problem("malformed", detail=ESCAPES)},
    "type": {"newOrder": problem(ESCAPES)},
    "subproblem": {"newOrder": problem("compound", subproblems=[
        {"type": ESCAPES, "detail": ESCAPES, "identifier": {"type": ESCAPES, "value": ESCAPES}}])},
    "terms": {"directory": put("meta.termsOfService", ESCAPES)},
    "directory-url": {"directory": put("newOrder", "https://localhost/" + ESCAPES)},
    "account-url": {"newAccount": change(headers={"Location": "https://localhost/\x1b[31m\x9b"})},
    "order-url": {"newOrder": change(headers={"Location": "https://localhost/\x1b[31m\x9b"})},
    "authorization-url": {"newOrder": put("authorizations.0", ESCAPES)},
    "name": {"authz": put("identifier.value", ESCAPES)},
    "kind-of-name": {"authz": put("identifier.type", ESCAPES)},
    "authorization-status": {"authz": put("status", ESCAPES)},
    "token": {"authz": put("challenges.2.token", ESCAPES)},
    "challenge-type": {"authz": put("challenges.2.type", ESCAPES)},
    "challenge-url": {"authz": put("challenges.2.url", ESCAPES)},
    "challenge-error": {"challenge": fields(status="pending", error={"detail": ESCAPES})},
    "order-status": {"order": put("status", ESCAPES)},
    "order-error": {"order": fields(status="invalid", error={"detail": ESCAPES})},
    "certificate-url": {"order": [None, put("certificate", ESCAPES)]},
    "certificate": {"certificate": replace(ESCAPES.encode("utf-8", "surrogatepass"))},
    "retry-after": {"newOrder": problem("rateLimited", 429, {"Retry-After": "\x1b[31m\x9b"})},
    "status-line": {"newOrder": elsewhere(wire(b"HTTP/1.1 400 \x1b[31m\x9b\r\n\r\n\x1b[31m"))},
    "no-http": {"newOrder": elsewhere(wire(b"\x1b[31m\x9b\r\n\r\n"))},
    "field-name": {"newOrder": replace({ESCAPES: ESCAPES})},
}))
def test_escape_sequences(trial, script):
    """Nothing that the CA sends reaches a terminal as more than letters."""
    trial.ends(script, scale=0.01)


def test_escape_sequences_in_profiles(trial):
    """The names of those that the CA has are shown where it lacks the one asked for."""
    fault = put("meta.profiles", {ESCAPES: ESCAPES})
    trial.fails({"directory": fault}, args={"--profile": "fast"})
