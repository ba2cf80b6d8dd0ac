"""The ways of CAs: what real ones do that RFC 8555 allows, or does not forbid, or that they do all
the same. Each was seen on a server that people use.

The runs are judged by trials.py. Where a wrong client waits for ten minutes, SOON has them scaled
down to half a minute, and the run ended after half of it.
"""
import base64
import re

import pki
import pytest
from faults import (
    ERROR, MISSING, change, delivered, fields, flood, hang_up, problem, put, replace)
from trials import SECRET, refusals

core = pytest.mark.core

SOON = {"scale": 0.05, "timeout": 15}
DETAIL = "there is no route to your host"
REASON = {"type": ERROR + "connection", "detail": DETAIL, "status": 400}
STUCK = fields(status="pending")
BUSY = problem("serverInternal", 503)
HEARD = problem("serverInternal", 503, heard=True)
LOST = delivered(hang_up)
REFUSED = problem("unauthorized", 403, detail=DETAIL)


def told_of(result, name):
    """The error lines that name a name (which is not just the end of another)."""
    return [line for line in refusals(result.err)
            if re.search(r"(?<![\w.])%s\b" % re.escape(name), line)]


def test_patience_with_a_patient_ca(trial):
    """An order is looked at again within half a minute, though the CA asks for a day; what comes
    with other answers, such as that to a challenge, says nothing about it."""
    script = dict.fromkeys(["newAccount", "newOrder", "authz", "challenge", "order", "finalize"],
                           change(headers={"Retry-After": "86400"}))
    ca = trial.works(script, scale=0.05, ca={"validation": 2}).ca
    first = ca.requests.index("order")
    assert 1.4 < ca.pauses("order")[0] < 10 and ca.times[first] - ca.times[first - 1] < 1.4


def look(authorization, challenge, error=None, only=""):
    """The states of an authorization (only of names that begin so) and of its challenge once that
    has been answered."""
    def fault(request, reply):
        http_01 = reply.body["challenges"][2]
        chosen = reply.body["identifier"]["value"].startswith(only)
        if chosen and http_01["status"] != "pending":
            reply.body["status"] = authorization
            http_01.update(status=challenge, **{"error": error} if error else {})
    return fault


PENDING, INVALID = look("pending", "pending"), fields(status="invalid")
FAILED = fields(status="invalid", error=REASON)
# What is told, and the faults that lead to it
SHOWN = {
    "refused": (DETAIL, {"challenge": REFUSED}),
    "refused late": (DETAIL, {"challenge": [BUSY, REFUSED] * 2, "authz": PENDING}),
    "order, too": (DETAIL, {"challenge": [BUSY, REFUSED] * 2, "authz": PENDING, "order": INVALID}),
    "refused for a day": (DETAIL, {"challenge": problem(
        "rateLimited", 429, {"Retry-After": "86400"}, detail=DETAIL)}),
    "in the answer": (DETAIL, {"challenge": FAILED, "authz": PENDING}),
    "why elsewhere": (DETAIL, {"challenge": INVALID, "authz": look("invalid", "invalid", REASON)}),
    "pending": (DETAIL, {"challenge": fields(status="pending", error=REASON), "authz": PENDING}),
    "pending with an error": (DETAIL, {"authz": look("pending", "pending", REASON)}),
    "invalid challenge only": (DETAIL, {"authz": look("pending", "invalid", REASON)}),
    "challenge processing": (DETAIL, {"authz": look("invalid", "processing", REASON)}),
    "invalid without a reason": ("invalid", {"challenge": INVALID, "authz": PENDING}),
    "expired": ("expired", {"authz": look("expired", "processing")}),
}


@pytest.mark.parametrize("words, script", SHOWN.values(), ids=SHOWN)
def test_a_failure_is_seen_wherever_it_shows(trial, words, script):
    """At once, while the order stays pending for ever: with names, and the CA's reason or state."""
    result = trial.fails({"order": STUCK, **script}, **SOON)
    for name in trial.names:
        assert any(words in line for line in told_of(result, name)), result.err
    assert result.ca.count("finalize") == 0


@pytest.mark.parametrize("authorization", [None, PENDING], ids=["honest", "pending"])
def test_a_failure_shows_in_the_order_only(trial, authorization):
    """Its error is told, also where the authorizations say nothing."""
    trial.fails({"order": FAILED, "authz": authorization}, DETAIL, **SOON)


@pytest.mark.parametrize("script, words", [
    ({"challenge": [REFUSED]}, DETAIL),
    ({"authz": look("invalid", "processing", REASON, only="site.")}, DETAIL),
    ({"authz": look("pending", "pending", only="site.")}, "pending")],
    ids=["refused", "invalid", "pending-for-ever"])
def test_one_of_two_names_fails(trial, script, words):
    """The name that fails is told, with the reason; not one that the CA has found valid."""
    result = trial.fails({"order": STUCK, **script}, words)
    assert len(refusals(result.err)) == len(told_of(result, "site.example")) == 1
    assert not told_of(result, "www.site.example")


def test_a_valid_name_may_have_a_failed_challenge(trial):
    """Another try, or another challenge, has proved it: the authorization is what counts."""
    def failed(request, reply):
        if reply.body["status"] == "valid":
            reply.body["challenges"][0]["status"] = "invalid"
    trial.works({"authz": failed, "order": [STUCK] * 2}, ca={"validation": 2})


@pytest.mark.parametrize("finalize, order", [
    ([BUSY, REFUSED], None), ([REFUSED], INVALID), ([REFUSED], fields(status="processing")),
    ([problem("serverInternal", 500, detail=DETAIL, heard=True), problem("orderNotReady")],
     INVALID)], ids=["in-trouble", "invalid", "processing", "lost"])
def test_finalize_is_refused(trial, finalize, order):
    """What decides is the order; what the CA says first is told, not how it looks in the end."""
    result = trial.fails({"finalize": finalize, "order": [None] + [order] * 1000}, DETAIL)
    assert result.ca.count("finalize") == len(finalize)


@pytest.mark.parametrize("fault, finalize", [
    (HEARD, HEARD), (LOST, None), (delivered(flood(50000010)), None)],
    ids=["trouble", "silence", "too long"])
def test_an_answer_is_lost(trial, fault, finalize):
    """The CA has done what it was asked, but never manages to say so: the order shows it."""
    trial.works({"challenge": [None] + [fault] * 1000, "finalize": finalize},
                waits={"REQUEST_PATIENCE": 0.5, "DOUBT_PATIENCE": 5})


@pytest.mark.parametrize("fault, nonce, words", [
    (HEARD, None, "as scripted"), (LOST, None, "/challenge/"), (LOST, LOST, "/newNonce")],
    ids=["trouble", "silence", "and-no-nonce"])
def test_every_answer_is_lost(trial, fault, nonce, words):
    """The run ends after one of them, with what the CA said, since others would fare no better."""
    result = trial.fails({"challenge": fault, "order": STUCK, "newNonce": [None, *[nonce] * 1000]},
                         waits={"REQUEST_PATIENCE": 0.3})
    assert words in "".join(told_of(result, "site.example")), result.err
    assert words not in "".join(told_of(result, "www.site.example"))


def test_valid_without_a_certificate(trial):
    """The order is looked at again (Pebble, for one, shows for a moment a certificate that will be,
    so that the status counts); if it stays like that, the error says what is missing."""
    valid, early = fields(status="valid"), fields(status="processing")
    empty = fields(status="valid", certificate=None)
    trial.works({"finalize": [valid], "order": [None, empty, empty, early, early]})
    missing = put("certificate", MISSING)
    trial.fails({"finalize": valid, "order": [None, *[missing] * 1000]}, "certificate")


def test_headers_of_the_self_check(trial, site, httpserver):
    """It says who it is and sends no type of a body that it has not (see also scripted_ca.py)."""
    trial.works(ca=site())
    assert len(httpserver.log) == 2
    for request, _ in httpserver.log:
        assert request.headers["User-Agent"].startswith("letsacme/")
        assert "Content-Type" not in request.headers


def test_names_as_the_csr_spells_them(trial, csr):
    """They are ordered letter by letter alike, whatever the CA makes of them in its answers."""
    trial.options["--csr"] = csr(["WWW.Site.Example"], cn="site.exAMPLE")

    def authorization(request, reply):
        name = reply.body["identifier"]
        reply.body["identifier"] = {**name, "value": name["value"].swapcase()}
    [order] = trial.works({"authz": authorization}).ca.orders.values()
    names = order.shown["identifiers"]
    assert {name["value"] for name in names} == {"WWW.Site.Example", "site.exAMPLE"}


@pytest.mark.parametrize("resource, length", [("directory", None), ("certificate", 50000010)])
def test_an_answer_that_is_too_long(trial, resource, length):
    """That is an error at once, since it will not be shorter next time."""
    result = trial.fails({resource: delivered(flood(length))}, "localhost", "bytes", **SOON)
    assert result.ca.count(resource) == 1


EAB = {"--eab-kid": "me", "--eab-hmac-key": SECRET}


@core
@pytest.mark.parametrize("refusal", [None, problem("externalAccountRequired", 403)], ids=bool)
def test_the_account_is_looked_up_first(trial, refusal):
    """The pair, which may be good for one use only, is sent when the look-up has been refused."""
    sent = []

    def account(request, reply):
        sent.append(set(request.payload) & {"onlyReturnExisting", "externalAccountBinding"})
        if refusal and len(sent) == 1:
            refusal(request, reply)
    trial.works({"newAccount": account}, args=EAB,
                ca={"eab": {"me": base64.urlsafe_b64decode(SECRET)}})
    assert sent == [{"onlyReturnExisting"}, {"externalAccountBinding"}]


@pytest.mark.parametrize("fault, words, times", [
    (REFUSED, DETAIL, 1), (None, "the external account is unknown", 2)], ids=["key", "pair"])
def test_the_account_is_refused(trial, fault, words, times):
    """The refusal is told, but not the pair's key; the pair is not spent on a key that is bad."""
    result = trial.fails({"newAccount": fault}, words, args=EAB,
                         ca={"eab": {"me": b"another key" * 4}})
    assert result.ca.count("newAccount") == times


SERIAL, AUTHORITY = 0x87654321, bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
ID = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


@pytest.mark.parametrize("answer, orders", [
    pytest.param(problem("alreadyReplaced", 409), [ID, None], marks=core, id="refused"),
    pytest.param(problem("rateLimited", 403), [ID], id="limited"),
    pytest.param(replace({"detail": "as scripted"}, 429), [ID], id="limited-without-a-type"),
    pytest.param(BUSY, [ID, ID], id="outage")])
def test_replaces_is_refused(trial, answer, orders):
    """The CA is asked for, and told of, the right certificate: the example of RFC 9773. If that is
    refused, the order is repeated without it, with a warning that has the CA's words; but a rate
    limit or an outage meets any order: another one would only make it worse."""
    old, asked, sent = trial.to_renew(pki.Issuer(), serial=SERIAL, authority=AUTHORITY), [], []

    def order(request, reply):
        """An order that does not say what it replaces is welcome."""
        sent.append(request.payload.get("replaces"))
        if sent[-1]:
            answer(request, reply)
    script = {"renewalInfo": lambda request, reply: asked.append(request.id), "newOrder": order}
    window = [old.not_valid_before_utc, old.not_valid_after_utc]
    result = trial.run(script, scale=0.01, changed=["fullchain.pem"], ca={"window": window})
    assert (result.status == 0) == (None in sent) == (None in orders), result.err
    told = re.findall("^[WE]: .*", result.err, re.M)
    assert "as scripted" in told[-1] and (len(told) == 1 or len(sent) > 2)
    assert asked == [ID] and sent[:2] == orders
