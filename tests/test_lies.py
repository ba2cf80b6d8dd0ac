"""The CA lies: in URLs, certificates and names, and with escape sequences.

Each kind of lie is told to a run here, and in its other forms to a function in test_parsing.py.
"""
import pki
import pytest
from faults import change, delivered, fields, problem, put, replace, wire
from scripted_ca import ScriptedCA


@pytest.mark.parametrize("resource, path, url", [
    ("directory", "newNonce", "http://HOST/x"), ("order", "certificate", "https://HOST/x"),
    ("authz", "challenges.2.url", "https://localhost:99999/x"), ("order", "finalize", "")])
def test_a_url_is_bad(trial, httpserver, resource, path, url):
    """Not https, not a URL, or on a host that has no TLS: nothing is sent there in clear."""
    url = url.replace("HOST", "%s:%d" % (httpserver.host, httpserver.port))
    result = trial.fails({resource: put(path, url)}, waits={"REQUEST_PATIENCE": 0.3})
    assert not httpserver.log and (path == "certificate" or not result.ca.count("finalize"))


def test_a_url_on_another_host(trial, tmp_path):
    """A CA may have several hosts, but each needs a certificate that is trusted."""
    with ScriptedCA(tmp_path / "other") as other:
        elsewhere = put("newOrder", other.base + "/newOrder")
        result = trial.fails({"directory": elsewhere}, other.base, "certificate")
        assert (other.requests, other.connections) == ([], 1)
        assert result.ca.count("newOrder") == 0


@pytest.mark.parametrize("ends, links", [(b"\r\n", 5), (b"\n", 0)], ids=["odd", "no-chain"])
def test_an_unusual_certificate(trial, ends, links):
    """What is odd about it does no harm: it is printed and written in the usual form."""
    issuer, public = pki.Issuer(), pki.load_key(trial.key).public_key()
    leaf = pki.pem(issuer.leaf([*trial.names, "MORE.example"], public))
    chain = pki.pem(issuer.intermediate) * links
    sent = leaf.replace(b"\n", ends) + ends + b"\n" + chain + b"\n"
    result = trial.works({"certificate": replace(sent)})
    assert result.out.encode() == leaf + chain


def test_a_challenge_for_somewhere_else(trial):
    """Nothing is written for another name, and the CA is not told (tokens: see test_parsing.py)."""
    lie = put("identifier.value", "victim.example")
    assert trial.fails({"authz": [None, lie]}, "victim.example").ca.count("challenge") == 0


ESCAPES = "\x1b[31mred\x1b]0;\x07\r\n\0\x08\x7f\x9b5m\u202eabc\u2028\u2066\ud800E: no\x85"
LATIN = "https://localhost/\x1b[31mred\x9b"     # what can stand in a header


@pytest.mark.parametrize("script", [
    pytest.param({"newOrder": problem(ESCAPES, detail=ESCAPES, subproblems=[
        {"type": ESCAPES, "identifier": {"value": ESCAPES}}])}, marks=pytest.mark.core),
    {"newOrder": change(headers={"Location": LATIN})},
    {"newOrder": replace(ESCAPES.encode("utf-8", "surrogatepass"))},
    {"order": [None, fields(status="invalid", error={"detail": ESCAPES})]}],
    ids=["problem", "url", "no-json", "order"])
def test_escape_sequences(trial, script):
    """Nothing that the CA sends reaches a terminal as more than letters, on one line."""
    assert "31mred" in trial.fails(script).err


def test_escape_sequences_in_a_good_run(trial):
    """The same where it is no error, or where there is nothing to see."""
    trouble = [problem("malformed", 503, {"Retry-After": LATIN}, detail=ESCAPES),
               delivered(wire(b"HTTP/1.1 503 \x1b[31m\x9b\r\n\r\n\x1b[31m")),
               replace({ESCAPES: ESCAPES}, 503)]
    err = trial.works({"directory": put("meta.termsOfService", ESCAPES), "newOrder": trouble * 2},
                      waits={"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.01}).err
    assert len([line for line in err.splitlines() if "31mred" in line]) > 1
