"""The CA lies: in URLs, certificates and names, and with escape sequences.

Each kind of lie is told to a run here, and in its other forms to a function in test_parsing.py.
"""
import pki
import pytest
from faults import change, delivered, fields, problem, put, replace, wire
from scripted_ca import ScriptedCA

core = pytest.mark.core


# ---- URLs

@pytest.mark.parametrize("place, url", [
    ("directory.newNonce", "http://HOST/x"), ("authz.challenges.2.url", "https://localhost:99999/x"),
    ("order.finalize", ""), ("order.certificate", "https://HOST/x")])
def test_a_url_is_bad(trial, httpserver, place, url):
    """Not https, not a URL, or on a host that has no TLS: nothing is sent there in clear."""
    resource, path = place.split(".", 1)
    url = url.replace("HOST", "%s:%d" % (httpserver.host, httpserver.port))
    result = trial.fails({resource: put(path, url)}, waits={"REQUEST_PATIENCE": 0.3})
    assert not httpserver.log
    assert place == "order.certificate" or not result.ca.count("finalize")


def test_a_url_on_another_host(trial, tmp_path):
    """A CA may have several hosts, but each needs a certificate that is trusted."""
    with ScriptedCA(tmp_path / "other") as other:
        elsewhere = put("newOrder", other.base + "/newOrder")
        result = trial.fails({"directory": elsewhere}, other.base, "certificate")
        assert (other.requests, other.connections) == ([], 1)
        assert result.ca.count("newOrder") == 0


# ---- Certificates and challenges. A body is a function of the trial and of the right certificate.

ISSUER = pki.Issuer()
CHAIN = pki.pem(ISSUER.intermediate)


def leaf(trial, *more):
    """The right certificate, or one for more names."""
    return ISSUER.leaf([*trial.names, *more], pki.load_key(trial.key).public_key())


@pytest.mark.parametrize("body", [
    pytest.param(lambda trial: pki.block(b"\x30\x80" * 5000) + CHAIN, marks=core, id="deep"),
    pytest.param(lambda trial: pki.pem(ISSUER.leaf(trial.names, pki.new_key().public_key())),
                 id="another-key"),
    pytest.param(lambda trial: pki.pem(leaf(trial)) + trial.key.read_bytes(), id="a-private-key"),
    pytest.param(lambda trial: b"-----BEGIN \x1b[31mred\x9b\x07-----\n", id="escapes")])
def test_a_wrong_certificate(trial, body):
    """It is not accepted, what was there stays, and the error says what it is about."""
    trial.fails({"certificate": replace(body(trial))}, "certificate", ca={"issuer": ISSUER})


@pytest.mark.parametrize("body", [
    pytest.param(lambda trial: pki.pem(leaf(trial, "MORE.example")).replace(b"\n", b"\r\n")
                 + b"\r\n\n" + CHAIN * 5 + b"\n", id="all-at-once"),
    pytest.param(lambda trial: pki.pem(leaf(trial)), id="no-chain")])
def test_an_unusual_certificate(trial, body):
    """What is odd about it does no harm: it is printed and written in the usual form."""
    sent = body(trial)
    result = trial.works({"certificate": replace(sent)}, ca={"issuer": ISSUER})
    assert result.out.encode() == pki.pem(*pki.x509.load_pem_x509_certificates(sent))


@pytest.mark.parametrize("field, value", [
    ("identifier.value", "victim.example"), ("challenges.2.token", "../" + "A" * 40)])
def test_a_challenge_for_somewhere_else(trial, field, value):
    """Nothing is written for another name, nor under a name with a path, and the CA is not told."""
    result = trial.fails({"authz": [None, put(field, value)]}, value)
    assert result.ca.count("challenge") == 0


# ---- Escape sequences

ESCAPES = "\x1b[31mred\x1b]0;\x07\r\n\0\x08\x7f\x9b5m\u202eabc\u2028\u2066\ud800E: no\x85"
LATIN = "https://localhost/\x1b[31mred\x9b"     # what can stand in a header


@pytest.mark.parametrize("script", [
    pytest.param({"newOrder": problem(ESCAPES, detail=ESCAPES, subproblems=[
        {"type": ESCAPES, "identifier": {"value": ESCAPES}}])}, marks=core, id="problem"),
    pytest.param({"newOrder": change(headers={"Location": LATIN})}, id="url"),
    pytest.param({"authz": put("challenges.2.token", ESCAPES)}, id="token"),
    pytest.param({"order": fields(status="invalid", error={"detail": ESCAPES})}, id="order"),
    pytest.param({"newOrder": replace(ESCAPES.encode("utf-8", "surrogatepass"))}, id="no-json")])
def test_escape_sequences(trial, script):
    """Nothing that the CA sends reaches a terminal as more than letters, on one line."""
    assert "31mred" in trial.fails(script).err


def test_escape_sequences_in_a_good_run(trial):
    """The same where it is no error, or where there is nothing to see."""
    trouble = [problem("malformed", 503, {"Retry-After": LATIN}, detail=ESCAPES),
               delivered(wire(b"HTTP/1.1 503 \x1b[31m\x9b\r\n\r\n\x1b[31m")),
               replace({ESCAPES: ESCAPES}, status=503)]
    err = trial.works({"directory": put("meta.termsOfService", ESCAPES), "newOrder": trouble * 2},
                      waits={"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.01}).err
    assert len([line for line in err.splitlines() if "31mred" in line]) > 1
