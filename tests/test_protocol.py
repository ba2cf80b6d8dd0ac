"""The CA refuses, keeps the client waiting, or answers in a shape that is not ACME's.

The words and shapes alone are in test_parsing.py.
"""
import re

import faults
import pki
import pytest
from faults import ERROR, MISSING, RESOURCES, change, delivered, fields, problem, put, replace

core = pytest.mark.core
SIGNED = RESOURCES[2:]


@core
@pytest.mark.quick
def test_all_is_well(trial):
    """The plain case, with no fault: RFC 8555 is kept, and each request is sent once."""
    ca = trial.works(ca={"host": "127.0.0.1"}).ca  # which needs no /etc/hosts
    assert (len(ca.requests), ca.connections) == (2 * len(trial.names) + 8, 1)
    assert {mode & 0o777 for _, mode in ca.files} == {0o644}


def test_nonces_are_refused(trial):
    """A CA may refuse nine of ten, everywhere; the error brings the next, so none is asked for."""
    refused = [problem("badNonce", 400)] * 9
    assert trial.works(dict.fromkeys(SIGNED, refused)).ca.count("newNonce") == 1


def test_answers_bring_no_good_nonce(trial):
    """Clients must ignore an invalid one (RFC 8555, 6.5.1), and can ask for another."""
    nonces = [None, "not a nonce!", "", "\x1b[31m"] * 2
    trial.works({resource: [change(headers={"Replay-Nonce": nonce})]
                 for resource, nonce in zip(SIGNED, nonces)})


def busy(after, status=429):
    """A fault: come back after so many seconds."""
    return problem("rateLimited", status, {"Retry-After": after}, detail="too many")


@pytest.mark.parametrize("seconds", [1, 0])
def test_the_ca_is_busy(trial, seconds):
    """What it says about when to come back is done."""
    result = trial.works({"newOrder": [busy(seconds)], "finalize": [busy(seconds, 503)]})
    assert min(result.ca.pauses("newOrder") + result.ca.pauses("finalize")) >= 0.9 * seconds
    assert result.err.count("W: ") == 2 * seconds and result.ca.connections == 1


@core
def test_the_ca_is_busy_and_makes_no_sense(trial):
    """A 5xx passes, whatever its body is, and a header that says nothing of use."""
    trouble = [busy(after, 503) for after in (
        "soon", "-5", "1.5", "1e9", "", "\xb2", None, "9" * 20, "Fri, 99 Foo 2026 99:99:99 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT")]
    trouble += [replace(body, 503) for body in (
        None, 7, ["x"], {"type": 7, "detail": ["x"], "subproblems": [1, None]}, b"", b"{}\n{}",
        b"<html><body>It works!</body></html>", b"{\"a\": \"\xff\"}", "{}".encode("utf-16"),
        b"{\"status\": NaN}", b"9" * 100000, b"[" * 200000, b"{\"a\":" * 100000)]
    # With such pauses each trouble is logged, and what is logged is judged.
    result = trial.works({"newOrder": trouble}, waits={"LONGEST_PAUSE": 0.01})
    assert result.ca.count("newOrder") == len(trouble) + 1


def test_the_ca_is_busy_for_a_week(trial):
    """That is an error at once, which says when to come back."""
    result = trial.fails({"order": busy(604800, 503)})
    assert re.search(r"too many.*\d\d \w{3} \d{4} [\d:]{8} GMT$", result.err, re.M)
    assert result.ca.count("order") == 1


def test_retry_after_is_obeyed_on_polling(trial):
    """An order that is not ready yet is looked at again when the CA says; it counts once."""
    script = dict.fromkeys(["order", "finalize"], [change(headers={"Retry-After": "1"})])
    first, second, *_, last = trial.works(script, ca={"validation": 4}).ca.pauses("order")
    assert 0.9 < first and second < 0.9 < last  # which is after finalize


@pytest.mark.parametrize("resource", [
    "newAccount", pytest.param("newOrder", marks=core), "authz", "finalize"])
def test_a_refusal(trial, resource):
    """The CA's own words are shown, those on each name too; it is not asked again."""
    parts = [{"type": ERROR + "caa", "detail": "forbidden by CAA", "identifier": {"value": name}}
             for name in ("n1.example", "n2.example")]
    refused = problem("compound", 403, detail="The CA's own w\xf6rds", subproblems=parts)
    result = trial.fails({resource: refused}, (
        f"The CA's own w\xf6rds, {ERROR}compound; n1.example: forbidden by CAA, {ERROR}caa; "
        f"n2.example: forbidden by CAA, {ERROR}caa"))
    assert result.ca.count(resource) == 1


def test_errors_though_it_worked(trial):
    """Answers were lost: the repeated requests are refused, but the order, soon seen, goes on."""
    lost, heard = delivered(faults.hang_up), problem("serverInternal", 503, heard=True)
    refused = problem("malformed", 403)
    trial.works({"newAccount": [lost], "challenge": [heard, refused, lost, refused],
                 "finalize": [heard, problem("orderNotReady")]})
    trial.works({"challenge": problem("malformed", 400, heard=True),
                 "order": [change(headers={"Retry-After": "86400"})],
                 "finalize": [lost, problem("badCSR")]}, ca={"validation": 3})


def test_the_names_are_proved_already(trial):
    """Valid authorizations and orders that are ready need no challenge, and are logged as such."""
    result = trial.works({"newOrder": fields(status="pending")}, ca={"reuse": True})
    assert not result.ca.count("challenge")
    assert "Already verified: site.example, skipping...\n" in result.err
    assert not trial.works(ca={"reuse": True}).ca.count("authz")


def test_a_ca_that_takes_no_time(trial):
    """Validation and issuance are over when they are first looked at."""
    trial.works(ca={"validation": 0, "issuance": 0})
    assert trial.works(ca={"validation": 4}).ca.count("authz") == len(trial.names)


@pytest.mark.parametrize("resource, status, times", [
    *(("order", status, 1000) for status in ("pending", "ready", "processing", "dancing")),
    ("newOrder", "ready", 1), ("newOrder", "valid", 1), ("newOrder", "dancing", 1),
    ("finalize", "dancing", 1), ("authz", "valid", 2)])
def test_an_odd_status(trial, resource, status, times):
    """However often one looks, or if it does not fit what comes later: the run ends."""
    result = trial.fails({resource: [fields(status=status)] * times}, "/order/",
                         waits={"WORK_PATIENCE": 0.5})
    assert result.ca.count("order") < 60


@pytest.mark.parametrize("resource, fault, words", [
    ("newNonce", change(headers={"Replay-Nonce": None}), "the answer has no Replay-Nonce"),
    pytest.param("certificate", replace(pki.block(b"\x30\x80" * 5000)), "", marks=core),
    *((resource, put(field, value), 'no usable "%s"' % field) for resource, field, value in (
        ("directory", "newNonce", MISSING), ("newOrder", "status", MISSING),
        ("newOrder", "authorizations", [7]), ("authz", "identifier", []),
        ("order", "finalize", MISSING), ("finalize", "status", 7)))])
def test_something_needed_is_odd(trial, resource, fault, words):
    """A nonce, a whole answer or a field: the error names it and the URL, at once."""
    result = trial.fails({resource: fault}, "https://localhost", "/" + resource, words)
    assert result.ca.count(resource) <= 2


FIELDS = {"directory": "meta", "newAccount": "status", "newOrder": "finalize identifiers",
          "order": "authorizations", "challenge": "status url token",
          "authz": "identifier.type challenges.2.status challenges.1.type challenges.0"}


@pytest.mark.parametrize("script", [
    *({resource: put(FIELDS[resource], value) for resource in FIELDS} for value in (MISSING, [7])),
    {"newAccount": replace(b"<html>", 202), "newOrder": change(200),
     "authz": [fields(status="invalid"), fields(status="dancing")],
     "challenge": [replace(None), replace({})]}], ids=["missing", "list", "answers"])
def test_what_is_of_no_interest_is_odd(trial, script):
    """It may be missing, or be anything, be it a field, an answer, a state at first, or which
    success it is."""
    trial.works(script)


@pytest.mark.parametrize("resource, status", [
    ("directory", 301), ("newNonce", 302), ("newOrder", 303), ("challenge", 307), ("finalize", 308),
    ("certificate", 302)])
def test_redirects(trial, httpserver, resource, status):
    """No CA redirects: nothing is followed."""
    elsewhere = replace(b"", status, {"Location": httpserver.url_for("/")})
    elsewhere.unheard = True
    trial.fails({resource: elsewhere}, str(status))
    assert not httpserver.log
