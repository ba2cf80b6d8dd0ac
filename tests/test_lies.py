"""The CA lies: in URLs, certificates, tokens and names, and with escape sequences."""
import pki
import pytest
from faults import change, delivered, fields, problem, put, replace, wire
from pki import DER, block
from scripted_ca import ScriptedCA
from support import cases

core = pytest.mark.core

# ---- URLs

PLACES = ["directory.newNonce", "directory.newAccount", "directory.newOrder",
          "newOrder.authorizations.0", "authz.challenges.2.url", "order.finalize",
          "order.certificate"]
URLS = ["http://HOST/x", "", "https://[::1", "https://localhost/x\r\nHost: y", "ftp://HOST/x",
        "file:///etc/passwd", "//HOST/x", "/relative", "https:///x", "https://localhost:99999/x",
        "https://localhost:port/x", "https://localhost/a b", "https://localhost/\x1b[31m",
        "https://localhost:1\n/x", "https://\u043a\u043b\u044e\u0447/", "https://HOST/x",
        "https://user:secret@HOST/"]


@pytest.mark.parametrize("place, url", [
    *(("directory.newOrder", url) for url in URLS),
    *((place, url) for place in PLACES for url in URLS[:4] if place != "directory.newOrder")])
def test_a_url_is_bad(trial, httpserver, place, url):
    """Not https, not a URL, or on a host that has no TLS: nothing is sent there in clear."""
    resource, path = place.split(".", 1)
    url = url.replace("HOST", "%s:%d" % (httpserver.host, httpserver.port))
    result = trial.fails({resource: put(path, url)})
    assert not httpserver.log
    assert place == "order.certificate" or not result.ca.count("finalize")


def test_a_url_on_another_host(trial, tmp_path):
    """A CA may have several hosts, but each needs a certificate that is trusted."""
    with ScriptedCA(tmp_path / "other") as other:
        elsewhere = put("newOrder", other.base + "/newOrder")
        result = trial.fails({"directory": elsewhere}, other.base, "certificate")
        assert (other.requests, other.connections) == ([], 1)
        assert result.ca.count("newOrder") == 0


# ---- Certificates. Each case is a function of the leaf that was right, and of what makes another.

ISSUER = pki.Issuer()
CHAIN = pki.pem(ISSUER.intermediate)
NAMES = ["www.site.example", "site.example"]


def leaf(trial, names=NAMES, key=None):
    """A certificate for the trial's key, or another."""
    return ISSUER.leaf(names, key or pki.load_key(trial.key).public_key())


def der(trial):
    """The right certificate in DER."""
    return leaf(trial).public_bytes(DER)


WRONG = {
    "another-key": lambda trial: pki.pem(leaf(trial, key=pki.new_key().public_key())) + CHAIN,
    **{"names %s" % names: lambda trial, names=names: pki.pem(leaf(trial, names)) + CHAIN
       for names in (NAMES[:1], [], ["evil.example"], ["*.site.example", "site.example"])},
    "the-chain-comes-first": lambda trial: CHAIN + pki.pem(leaf(trial)),
    "no-leaf": lambda trial: CHAIN,
    "the-chain-is-cut": lambda trial: (pki.pem(leaf(trial)) + CHAIN)[:-100],
    "the-chain-is-no-base64": lambda trial: pki.pem(leaf(trial)) + block(b"").replace(b"\n-",
                                                                                      b"\n!-"),
    "the-chain-is-garbled": lambda trial: pki.pem(leaf(trial)) + block(b"nothing of the kind"),
    "the-chain-is-empty": lambda trial: pki.pem(leaf(trial)) + block(b""),
    "a-byte-is-missing": lambda trial: block(der(trial)[:-1]) + CHAIN,
    "bytes-follow": lambda trial: block(der(trial) + b"\0\0") + CHAIN,
    "garbled": lambda trial: block(b"\x30\x82\xff\xff" + der(trial)) + CHAIN,
    "deep": lambda trial: block(b"\x30\x80" * 5000) + CHAIN,
    "der": der,
    "html": lambda trial: b"<html>",
    "empty": lambda trial: b"",
    "json": lambda trial: {"certificate": "none"},
    "a-private-key-follows": lambda trial: pki.pem(leaf(trial)) + trial.key.read_bytes(),
}


@pytest.mark.parametrize("body", cases(WRONG))
def test_a_wrong_certificate(trial, body):
    """It is not accepted, what was there stays, and the error says what it is about."""
    trial.fails({"certificate": replace(body(trial))}, "certificate", ca={"issuer": ISSUER})


@pytest.mark.parametrize("body", cases({
    "more-names": lambda trial: pki.pem(leaf(trial, NAMES + ["more.example"])) + CHAIN,
    "upper-case": lambda trial: pki.pem(leaf(trial, [name.upper() for name in NAMES])) + CHAIN,
    "a-long-chain": lambda trial: pki.pem(leaf(trial)) + CHAIN * 5,
    "crlf": lambda trial: (pki.pem(leaf(trial)) + CHAIN).replace(b"\n", b"\r\n"),
    "blank-lines": lambda trial: pki.pem(leaf(trial)) + b"\n" + CHAIN + b"\n",
    "no-chain": lambda trial: pki.pem(leaf(trial)),
}))
def test_an_unusual_certificate(trial, body):
    """What is odd about it does no harm: it is printed and written in the usual form."""
    sent = body(trial)
    result = trial.works({"certificate": replace(sent)}, ca={"issuer": ISSUER})
    assert result.out.encode() == pki.pem(*pki.x509.load_pem_x509_certificates(sent))


# ---- Challenges

TOKENS = ["../" + "A" * 40, "/" + "A" * 40, "A" * 20 + "/" + "A" * 20, "A" * 40 + "/",
          "A" * 30 + "\0", "A" * 30 + "\n", "\n" + "A" * 30, "A" * 201, "A" * 21, "", ".", "..",
          "~" * 30, "A" * 30 + " ", "A" * 30 + "=", "A" * 30 + ".", "\xe9" * 30, "\uff21" * 30,
          "$(id)" * 9, "%2e" * 20, None, 7, ["A" * 30], {"A" * 30: 1}, True]


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: repr(token)[:30])
def test_a_token_is_unsafe(trial, token):
    """It never becomes part of a path."""
    result = trial.fails({"authz": put("challenges.2.token", token)}, "token")
    assert result.ca.count("challenge") == 0


@pytest.mark.parametrize("token", ["A" * 22, "-_" * 100])
def test_a_token_is_safe(trial, token):
    """So short and so long ones are, and with these letters."""
    trial.works(ca={"token": token, "reuse": False}, args={"--csr": one_name(trial)})


def one_name(trial):
    """A CSR for one name alone, since the scripted CA gives all the same token."""
    trial.names = trial.names[:1]
    return pki.write_csr(trial.folder / "one.csr", trial.names, trial.key)


@core
def test_an_authorization_for_another_name(trial):
    """Nothing is written or answered for it."""
    fault = put("identifier.value", "victim.example")
    assert trial.fails({"authz": [None, fault]}, "victim.example").ca.count("challenge") == 0


def test_there_is_no_http_challenge(trial):
    """The error names the name, and what the CA offers instead."""
    no_http = put("challenges", [{"type": "dns-01"}, {"type": "tls-alpn-01"}, {}, 7])
    result = trial.fails({"authz": no_http}, "site.example", "http-01", "dns-01", "tls-alpn-01")
    assert result.ca.count("challenge") == 0


# ---- Escape sequences

ESCAPES = "\x1b[31mred\x1b]0;\x07\r\n\0\x08\x7f\x9b5m\u202eabc\u2028\u2066\ud800E: no\x85"
LATIN = "https://localhost/\x1b[31mred\x9b"     # what can stand in a header
IN_A_CHALLENGE = {"type": "http-01", "error": {"detail": ESCAPES}}
SHOWN = {   # each is shown, in harmless letters: among them the word that all of them have
    "detail": {"newOrder": problem("malformed", detail=ESCAPES)},
    "type": {"newOrder": problem(ESCAPES)},
    **{"subproblem's " + name: {"newOrder": problem("compound", subproblems=[part])}
       for name, part in {"type": {"type": ESCAPES}, "detail": {"detail": ESCAPES},
                          "name": {"identifier": {"type": "dns", "value": ESCAPES}}}.items()},
    "directory-url": {"directory": put("newOrder", "https://localhost/" + ESCAPES)},
    "account-url": {"newAccount": change(headers={"Location": LATIN}), "newOrder": problem("caa")},
    "order-url": {"newOrder": change(headers={"Location": LATIN})},
    "authorization-url": {"newOrder": put("authorizations.0", ESCAPES)},
    "name": {"authz": put("identifier.value", ESCAPES)},
    "token": {"authz": put("challenges.2.token", ESCAPES)},
    "challenge-type": {"authz": put("challenges.2.type", ESCAPES)},
    "challenge-url": {"authz": put("challenges.2.url", ESCAPES)},
    "challenge-error": {"challenge": fields(status="pending", error={"detail": ESCAPES}),
                        "authz": [None] * 2 + [fields(status="pending")] * 50,
                        "order": fields(status="pending")},
    "authorization-error": {"authz": [None] * 2 + [fields(
        status="invalid", challenges=[IN_A_CHALLENGE])] * 50, "order": fields(status="pending")},
    "order-status": {"order": put("status", ESCAPES)},
    "order-error": {"order": fields(status="invalid", error={"detail": ESCAPES})},
    "certificate-url": {"order": [None, put("certificate", ESCAPES)]},
    "field": {"newOrder": replace({"status": [ESCAPES]})},
    "no-json": {"newOrder": replace(ESCAPES.encode("utf-8", "surrogatepass"))},
    "label": {"certificate": replace(b"-----BEGIN \x1b[31mred\x9b\x07-----\n")},
}


@pytest.mark.parametrize("script", cases(SHOWN))
def test_escape_sequences(trial, script):
    """Nothing that the CA sends reaches a terminal as more than letters, on one line."""
    result = trial.fails(script)
    assert "31mred" in result.err, result.err


@pytest.mark.parametrize("script", cases({
    "terms": {"directory": put("meta.termsOfService", ESCAPES)},
    "warning": {"newOrder": [problem("malformed", 503, detail=ESCAPES)] * 3},
}))
def test_escape_sequences_in_a_good_run(trial, script):
    """The same where it is no error."""
    assert "31mred" in trial.works(script).err


@pytest.mark.parametrize("fault", cases({
    "retry-after": problem("rateLimited", 429, {"Retry-After": LATIN}),
    "status-line": delivered(wire(b"HTTP/1.1 400 \x1b[31m\x9b\r\n\r\n\x1b[31m")),
    "no-http": delivered(wire(b"\x1b[31m\x9b\r\n\r\n")),
    "field-name": replace({ESCAPES: ESCAPES}),
}))
def test_escape_sequences_that_need_not_be_shown(trial, fault):
    """The same where there is nothing to see."""
    trial.fails({"newOrder": fault})
