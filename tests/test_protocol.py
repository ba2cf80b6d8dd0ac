"""The CA refuses, keeps the client waiting, or answers in a shape that is not ACME's."""
import re
import time
from email.utils import formatdate

import faults
import pytest
from faults import ERROR, MISSING, change, delivered, fields, problem, put, redirect, replace
from support import cases
from trials import SECRET

core = pytest.mark.core
RESOURCES = ["directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order",
             "finalize", "certificate"]
SIGNED = RESOURCES[2:]
JSON = [name for name in RESOURCES if name not in ("newNonce", "certificate")]


@core
@pytest.mark.quick
def test_all_is_well(trial):
    """The plain case, with no fault: RFC 8555 is kept, and each request is sent once."""
    ca = trial.works().ca
    assert (len(ca.requests), ca.connections) == (2 * len(trial.names) + 8, 1)
    assert {mode & 0o777 for _, mode in ca.files} == {0o644}


# ---- Nonces

BAD_NONCE = problem("badNonce", 400)


@pytest.mark.parametrize("resource", SIGNED)
def test_a_nonce_is_refused(trial, resource):
    """The error brings the next nonce, so there is no need to ask for one."""
    assert trial.works({resource: [BAD_NONCE]}).ca.count("newNonce") == 1


@core
def test_nonces_are_refused_at_every_request(trial):
    """Several in a row are borne everywhere."""
    trial.works({resource: [BAD_NONCE] * 4 for resource in SIGNED})


@pytest.mark.parametrize("nonce", cases({
    "none": None, "not-base64url": "not a nonce!", "empty": "", "escapes": "\x1b[31m"}))
def test_an_answer_brings_no_good_nonce(trial, nonce):
    """Clients must ignore an invalid one (RFC 8555, 6.5.1), and can ask for another."""
    fault = change(headers={"Replay-Nonce": nonce})
    trial.works({resource: [fault] for resource in SIGNED})


# ---- The CA is busy

def busy(after, status=429):
    """A fault: come back after so many seconds, or at a date that is so many seconds away."""
    def fault(request, reply):
        when = after if isinstance(after, str) else formatdate(time.time() + after, usegmt=True)
        problem("rateLimited", status, {"Retry-After": when}, detail="too many")(request, reply)
    fault.unheard = True
    return fault


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after, least", [("1", 0.95), ("0", 0), (2, 0.9), (-1000, 0)])
def test_the_ca_is_busy(trial, status, after, least):
    """What it says about when to come back, in seconds or as a date, is done."""
    result = trial.works({"newOrder": [busy(after, status)]})
    assert result.ca.pauses("newOrder")[0] >= least
    assert ("W: " in result.err) == (least > 0)


@pytest.mark.parametrize("after", ["soon", "-5", "1.5", "1e9", "", "\xb2", None,
                                   "99999999999999999999", "Fri, 99 Foo 2026 99:99:99 GMT",
                                   "Sun, 06 Nov 0000 08:49:37 GMT"])
def test_the_ca_is_busy_for_nonsense(trial, after):
    """A header that says nothing of use stops nothing."""
    trial.works({"newOrder": [problem("rateLimited", 503, {"Retry-After": after})]})


@pytest.mark.parametrize("resource, after", [
    ("newOrder", "604800"), ("newOrder", 604800), ("order", "604800")])
def test_the_ca_is_busy_for_a_week(trial, resource, after):
    """That is an error at once, which says when to come back."""
    result = trial.fails({resource: busy(after)}, "too many")
    assert re.search(r"60479\d|604800|\d\d \w{3} \d{4} [\d:]{8} GMT$", result.err, re.M)
    assert result.ca.count(resource) == 1


def test_a_429_without_a_date(trial):
    """A rate limit that does not say when it ends is an error at once."""
    result = trial.fails({"newOrder": problem("rateLimited", 429)}, "rateLimited")
    assert result.ca.count("newOrder") == 1


@core
@pytest.mark.parametrize("resource", ["order", "finalize"])
def test_retry_after_is_obeyed_on_polling(trial, resource):
    """An order that is not ready yet is looked at again when the CA says."""
    script = {resource: [change(headers={"Retry-After": "1"})]}
    result = trial.works(script, ca={"validation": 2}, waits={"LONGEST_POLL_PAUSE": 10})
    assert 0.9 < result.ca.pauses(resource, "order")[0] < 3


def test_pauses_grow(trial):
    """The pause grows with each look, up to a bound."""
    waits = {"FIRST_PAUSE": 0.05, "LONGEST_PAUSE": 0.2}
    trouble = problem("serverInternal", 500)
    tries = trial.works({"newOrder": [trouble] * 7}, waits=waits).ca.pauses("newOrder")
    looks = trial.works(ca={"validation": 20}, waits=waits).ca.pauses("order")
    for pauses in tries, looks:
        assert max(pauses) > 0.15 and sum(pauses) < 4


# ---- Refusals

ERRORS = """accountDoesNotExist alreadyReplaced badCSR badPublicKey badSignatureAlgorithm caa
    compound connection dns externalAccountRequired incorrectResponse invalidContact invalidProfile
    malformed orderNotReady rejectedIdentifier tls unauthorized unsupportedContact
    unsupportedIdentifier userActionRequired noSuchProblem""".split()


@pytest.mark.parametrize("number, kind", [pytest.param(*each, marks=[core] * (each[0] == 0))
                                          for each in enumerate(ERRORS)])
def test_every_error_type(trial, number, kind):
    """The CA's own words are shown, and a refusal is not asked for again."""
    resource = ["newAccount", "newOrder", "authz", "finalize"][number % 4]
    detail = "The CA's own w\xf6rds about " + kind
    result = trial.fails({resource: problem(kind, 403, detail=detail)}, kind, detail)
    assert result.ca.count(resource) == 1


@pytest.mark.parametrize("resource, kind", [
    ("newAccount", None), ("finalize", "orderNotReady"), ("challenge", "malformed"),
    ("finalize", "badCSR")])
def test_an_error_though_it_worked(trial, resource, kind):
    """Its answer was lost: the repeated request is refused, but the order goes on."""
    trial.works({resource: [delivered(faults.hang_up), problem(kind, 403) if kind else None]})


def test_the_reason_comes_first(trial):
    """Trouble that says why the repeated request is refused is what is told."""
    why = problem("serverInternal", 500, detail="the printer is out of paper", heard=True)
    trial.fails({"finalize": [why, problem("orderNotReady")], "order": [None, fields(
        status="invalid")]}, "out of paper")


@core
def test_subproblems(trial):
    """Each is shown with its name."""
    parts = [{"type": ERROR + "caa", "detail": "forbidden by CAA %d" % number,
              "identifier": {"type": "dns", "value": "n%d.example" % number}} for number in (1, 2)]
    trial.fails({"newOrder": problem("compound", 403, subproblems=parts)}, "as scripted",
                "n1.example: forbidden by CAA 1", "n2.example: forbidden by CAA 2")


PROBLEMS = [
    {}, {"type": 7, "detail": ["x"]}, {"detail": None}, {"type": None, "detail": {"a": 1}}, [],
    None, "text", 7, b"<html>", b"", b"\xff\xfe", {"detail": "x" * 100000}, {"type": "x" * 100000},
    {"subproblems": "no"}, {"subproblems": [1, None, {"identifier": 5}]}, {"subproblems": {"a": 1}},
    {"subproblems": [{"detail": "y" * 3000}] * 100}, {"status": "pending"}, {"status": "valid"},
    {"subproblems": [{"identifier": {"value": 5}, "detail": 5, "type": 5}]}]


@pytest.mark.parametrize("body", PROBLEMS, ids=lambda body: repr(body)[:40])
def test_a_problem_of_an_odd_shape(trial, body):
    """An error is an error, whatever stands in it, and names the URL."""
    trial.fails({"newOrder": replace(body, "application/problem+json", 403)}, "/newOrder")


def test_the_account_is_deactivated(trial):
    """The CA refuses at the start, or at the first order."""
    dead = problem("unauthorized", 401, detail="Account is deactivated")
    trial.fails({"newAccount": dead}, "deactivated")
    trial.fails({"newAccount": fields(status="deactivated"), "newOrder": dead}, "deactivated")


@core
def test_external_account(trial):
    """The key of the pair is shown nowhere, be it right or wrong."""
    pair = {"--eab-kid": "me", "--eab-hmac-key": SECRET}
    trial.works(args=pair, ca={"eab": {"me": b"secret" * 8}})
    trial.fails(None, "external account", args=pair, ca={"eab": {"me": b"another key" * 4}})


# ---- States (where CAs show the failure of a validation: see test_ways.py)

@core
def test_the_files_cannot_be_read(trial):
    """Each name is reported with the CA's words."""
    trial.fails(None, *["%s: " % name for name in trial.names], "cannot be read",
                ca={"challenges": trial.folder / "nowhere"})


def test_the_issuance_fails(trial):
    """An order that becomes invalid says why."""
    why = {"type": ERROR + "caa", "detail": "CAA forbids it"}
    trial.fails({"order": [None, fields(status="invalid", error=why)]}, "CAA forbids it")


@core
def test_the_names_are_proved_already(trial):
    """Valid authorizations and orders that are ready need no challenge, and are logged as such."""
    result = trial.works({"newOrder": fields(status="pending")}, ca={"reuse": True})
    assert not result.ca.count("challenge")
    assert "Already verified: site.example, skipping...\n" in result.err
    assert not trial.works(ca={"reuse": True}).ca.count("authz")


@pytest.mark.parametrize("polls", [0, 4])
def test_the_pace_of_the_ca(trial, polls):
    """Validation and issuance take no time, or some."""
    trial.works(ca={"validation": polls, "issuance": polls})


# ---- Shapes

STATES = ["pending", "ready", "processing", "valid", "invalid", "dancing", 7, None, [], {}]


@pytest.mark.parametrize("status", STATES, ids=str)
def test_the_order_is_stuck(trial, status):
    """However often one looks, the run ends, and names the order."""
    result = trial.fails({"order": fields(status=status)}, "/order/", waits={"WORK_PATIENCE": 0.5})
    assert result.ca.count("order") < 60


@pytest.mark.parametrize("resource, ends_well", [
    ("newOrder", ["pending"]), ("finalize", ["processing", "valid"]),
    ("authz", ["pending", "ready", "processing", "invalid", "dancing"])])
@pytest.mark.parametrize("status", STATES, ids=str)
def test_an_answer_has_an_odd_status(trial, resource, status, ends_well):
    """What the CA says first need not fit what it says later."""
    (trial.works if status in ends_well else trial.fails)({resource: [fields(status=status)] * 2})


BODIES = {
    "list": ["x"], "string": "x", "number": 7, "null": None, "true": True, "empty-object": {},
    "html": b"<html><body>It works!</body></html>", "nothing": b"",
    "not-utf8": b"{\"a\": \"\xff\"}", "deep": b"[" * 200000, "deep-objects": b"{\"a\":" * 100000,
    "huge-number": b"9" * 100000, "nan": b"{\"status\": NaN}", "cut": b"{\"status\": \"val",
    "utf16": "{}".encode("utf-16"),
}
NEEDED = ["directory", "newOrder", "authz", "order", "finalize"]


@pytest.mark.parametrize("resource, body", [
    *(pytest.param("order", body, marks=[core] * (body == "list")) for body in BODIES),
    *((resource, body) for resource in JSON for body in ("null", "html", "empty-object")
      if resource != "order")])
def test_an_answer_is_no_object(trial, resource, body):
    """Where the answer is needed, the error names its URL; where it is not, nothing is lost."""
    if resource in NEEDED:
        trial.fails({resource: replace(BODIES[body])}, "https://localhost", "/" + resource)
    else:
        trial.works({resource: replace(BODIES[body])})


@pytest.mark.parametrize("value", cases({"missing": MISSING, "list": [7]}))
@pytest.mark.parametrize("field", """directory.newNonce directory.newAccount directory.newOrder
    newOrder.status newOrder.authorizations authz.status authz.identifier authz.identifier.value
    authz.challenges authz.challenges.2 authz.challenges.2.type authz.challenges.2.url
    authz.challenges.2.token order.status order.finalize""".split())
def test_a_needed_field_is_odd(trial, field, value):
    """Missing, or of another type: the error names the URL and the field, or the name."""
    resource, path = field.split(".", 1)
    error = trial.fails({resource: put(path, value)}).err.splitlines()[-1]
    assert ("site.example: " in error and "http-01" in error
            or "https://localhost" in error and (path.split(".")[-1] in error
                                                 or "no directory of" in error)), error


@pytest.mark.parametrize("value", cases({"missing": MISSING, "list": [7]}))
@pytest.mark.parametrize("field", """directory.meta newOrder.finalize newOrder.identifiers
    authz.identifier.type authz.challenges.0 authz.challenges.0.type authz.challenges.2.status
    challenge.status challenge.url challenge.token order.authorizations""".split())
def test_a_field_of_no_interest_is_odd(trial, field, value):
    """What is not needed may be missing, or be anything."""
    resource, path = field.split(".", 1)
    trial.works({resource: put(path, value)})


@pytest.mark.parametrize("resource", ["newAccount", "newOrder"])
@pytest.mark.parametrize("location", [None, "", "x", "http://localhost/", "https://localhost:1/\x1b"])
def test_a_new_object_has_no_good_url(trial, resource, location):
    """A Location that is missing, or not a URL to go on with."""
    trial.fails({resource: change(headers={"Location": location})},
                "Location" if location is None else "https", ca={"forgive": True})


def test_fields_and_statuses_of_the_future(trial):
    """What is not known is ignored."""
    trial.works({resource: fields(future={"a": [1, None]}, x="y") for resource in JSON})
    trial.works({"newAccount": change(status=202), "newOrder": change(status=200)})


@pytest.mark.parametrize("resource, status", [
    *((resource, 302) for resource in RESOURCES),
    *(("newOrder", status) for status in (301, 303, 307, 308))])
def test_redirects(trial, httpserver, resource, status):
    """No CA redirects: nothing is followed."""
    trial.fails({resource: redirect(httpserver.url_for("/"), status)}, str(status))
    assert not httpserver.log


def test_what_the_ca_says_is_cut(trial):
    """Up to 4,000 characters of the CA's words are shown."""
    for length, shown in (3500, 3500), (9000, 3900):
        result = trial.fails({"newOrder": problem("malformed", detail="x" * length)})
        assert "x" * shown in result.err and len(result.err) < 4900
