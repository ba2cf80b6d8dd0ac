"""The ways of CAs: what real ones do that RFC 8555 allows, or does not forbid, or that they do all
the same. Each was seen on a server that people use.

The runs are judged by trials.py. Where a wrong client waits for ten minutes, SOON has them scaled
down to half a minute, and the run ended after half of it.
"""
import base64
import datetime
import re

import pki
import pytest
from faults import ERROR, MISSING, change, delivered, fields, flood, hang_up, problem, put, replace
from trials import SECRET, refusals

core = pytest.mark.core

SOON = {"scale": 0.05, "timeout": 15}
DETAIL = "there is no route to your host"
REASON = {"type": ERROR + "connection", "detail": DETAIL, "status": 400}
STUCK = fields(status="pending")
DAY = datetime.timedelta(days=1)


def told_of(result, name):
    """The error lines that name a name (which is not just the end of another)."""
    return [line for line in refusals(result.err)
            if re.search(r"(?<![\w.])%s\b" % re.escape(name), line)]


# ---- Retry-After

LATER = change(headers={"Retry-After": "86400"})


def test_patience_with_a_patient_ca(trial):
    """A CA that asks for a day is looked at again within half a minute."""
    result = trial.works({"finalize": LATER, "order": LATER}, scale=0.02, ca={"validation": 2})
    assert 0.5 < result.ca.pauses("order")[0] < 10


def test_long_retry_after_on_a_challenge(trial):
    """What comes with the answer to a challenge says nothing about the order."""
    script = dict.fromkeys(["challenge", "authz", "newOrder", "newAccount"], LATER)
    assert trial.works(script, scale=1, timeout=20).ca.count("newOrder") == 1


# ---- Failures of the validation

def look(authorization, challenge, error=None):
    """The states of an authorization and of its challenge once that has been answered."""
    def fault(request, reply):
        http_01 = reply.body["challenges"][2]
        if http_01["status"] != "pending":
            reply.body["status"] = authorization
            http_01.update({"status": challenge, "error": error} if error else
                           {"status": challenge})
    return fault


def of_one(fault):
    """The authorization of one name is spoilt."""
    def chosen(request, reply):
        if reply.body["identifier"]["value"] == "site.example":
            fault(request, reply)
    return chosen


PENDING = look("pending", "pending")
BUSY = problem("serverInternal", 503)
HEARD = problem("serverInternal", 503, heard=True)
REFUSED = problem("unauthorized", 403, detail=DETAIL)
SHOWN = {
    "refused": {"challenge": REFUSED},
    "refused-after-trouble": {"challenge": [BUSY, REFUSED] * 2, "authz": PENDING},
    "refused-and-the-order-invalid": {"challenge": [BUSY, REFUSED] * 2, "authz": PENDING,
                                      "order": fields(status="invalid")},
    "refused-for-a-day": {"challenge": problem("rateLimited", 429, {"Retry-After": "86400"},
                                               detail=DETAIL)},
    "invalid-in-the-answer": {"challenge": fields(status="invalid", error=REASON),
                              "authz": PENDING},
    "invalid-in-the-answer-and-why-elsewhere": {"challenge": fields(status="invalid"),
                                                "authz": look("invalid", "invalid", REASON)},
    "pending-with-an-error-in-the-answer": {"challenge": fields(status="pending", error=REASON),
                                            "authz": PENDING},
    "pending-with-an-error": {"authz": look("pending", "pending", REASON)},
    "invalid-challenge-only": {"authz": look("pending", "invalid", REASON)},
    "invalid-and-the-challenge-processing": {"authz": look("invalid", "processing", REASON)},
}
WITHOUT_A_REASON = {
    "invalid": {"challenge": fields(status="invalid"), "authz": PENDING},
    "expired": {"authz": look("expired", "processing")},
}


@pytest.mark.parametrize("script, words", [
    *((script, DETAIL) for script in SHOWN.values()),
    *((script, status) for status, script in WITHOUT_A_REASON.items())],
    ids=[*SHOWN, *WITHOUT_A_REASON])
def test_a_failure_is_seen_wherever_it_shows(trial, script, words):
    """At once, while the order stays pending for ever: with names, and the CA's reason or state."""
    result = trial.fails({"order": STUCK, **script}, **SOON)
    for name in trial.names:
        assert any(words in line for line in told_of(result, name)), result.err
    assert result.ca.count("finalize") == 0


@pytest.mark.parametrize("authorization", [None, PENDING], ids=["honest", "pending"])
def test_a_failure_shows_in_the_order_only(trial, authorization):
    """Its error is told, also where the authorizations say nothing."""
    script = {"order": fields(status="invalid", error=REASON), "authz": authorization}
    trial.fails(script, DETAIL, **SOON)


@pytest.mark.parametrize("script, words", [
    ({"challenge": [REFUSED]}, DETAIL),
    ({"authz": of_one(look("invalid", "processing", REASON))}, DETAIL),
    ({"authz": of_one(PENDING)}, "pending")], ids=["refused", "invalid", "pending-for-ever"])
def test_one_of_two_names_fails(trial, script, words):
    """The name that fails is told, with the reason; not one that the CA has found valid."""
    result = trial.fails({"order": STUCK, **script}, words)
    assert len(refusals(result.err)) == len(told_of(result, "site.example")) == 1
    assert not told_of(result, "www.site.example")


# ---- Trouble, then a refusal

@pytest.mark.parametrize("finalize, order", [
    ([BUSY, REFUSED], []), ([REFUSED], ["invalid"]), ([REFUSED], ["processing"]),
    ([problem("serverInternal", 500, detail=DETAIL, heard=True), problem("orderNotReady")],
     ["invalid"])], ids=["in-trouble", "invalid", "processing", "lost"])
def test_finalize_is_refused(trial, finalize, order):
    """What decides is the order; what the CA says first is told, not how it looks in the end."""
    states = [fields(status=status) for status in order]
    result = trial.fails({"finalize": finalize, "order": [None, *states * 1000]}, DETAIL)
    assert result.ca.count("finalize") == len(finalize)


def test_answers_that_never_get_through(trial):
    """The CA has done what it was asked, but never manages to say so: the order does."""
    trial.works({"challenge": [None] + [HEARD] * 1000, "finalize": HEARD},
                waits={"REQUEST_PATIENCE": 0.5, "DOUBT_PATIENCE": 5})


def test_the_answer_to_a_challenge_is_lost(trial):
    """The order, and nothing else, shows that the CA has heard of it."""
    lost = delivered(hang_up)
    trial.works({"challenge": [None] + [lost] * 1000},
                waits={"REQUEST_PATIENCE": 0.5, "DOUBT_PATIENCE": 5})
    result = trial.fails({"challenge": lost, "order": STUCK})
    assert told_of(result, "site.example")


def test_a_valid_name_may_have_a_failed_challenge(trial):
    """Another try, or another challenge, has proved it: the authorization is what counts."""
    def failed(request, reply):
        if reply.body["status"] == "valid":
            reply.body["challenges"][0]["status"] = "invalid"
    trial.works({"authz": failed, "order": [STUCK] * 2}, ca={"validation": 2})


def test_the_answer_to_no_challenge_gets_through(trial):
    """The run ends after one of them, with what the CA said, since others would fare no better."""
    result = trial.fails({"challenge": HEARD, "order": STUCK}, "as scripted",
                         waits={"REQUEST_PATIENCE": 0.3})
    assert told_of(result, "site.example")
    assert not any("as scripted" in line for line in told_of(result, "www.site.example"))


# ---- Headers (those of other requests: see scripted_ca.py)

def test_headers_of_the_self_check(trial, site, httpserver):
    """It says who it is and sends no type of a body that it has not."""
    trial.works(ca=site())
    assert len(httpserver.log) == 2
    for request, _ in httpserver.log:
        assert request.headers["User-Agent"].startswith("letsacme/")
        assert "Content-Type" not in request.headers


# ---- An order that is valid, but has no certificate yet

def test_valid_without_a_certificate(trial):
    """It is looked at again: as the answer to finalize, and as the order.

    Pebble, for one, shows for a moment a certificate that will be: the status counts.
    """
    empty, early = fields(status="valid", certificate=None), fields(status="processing")
    trial.works({"finalize": [fields(status="valid")], "order": [None, empty, empty, early, early]})


def test_valid_without_a_certificate_for_ever(trial):
    """The run ends, and the error says what is missing, not that a valid order has failed."""
    empty = put("certificate", MISSING)
    trial.fails({"order": [None, *[empty] * 1000], "finalize": fields(status="valid")},
                "certificate")


# ---- The spelling of names

def test_names_as_the_csr_spells_them(trial, csr):
    """They are ordered letter by letter alike, whatever the CA makes of them in its answers."""
    spelling, ordered = ["WWW.Site.Example", "site.exAMPLE"], []
    trial.options["--csr"] = csr(spelling[:1], cn=spelling[1])

    def order(request, reply):
        """Keep what was ordered."""
        ordered.extend(each["value"] for each in request.payload["identifiers"])

    def authorization(request, reply):
        """Show the name in another spelling."""
        name = reply.body["identifier"]
        reply.body["identifier"] = {**name, "value": name["value"].swapcase()}
    trial.works({"newOrder": order, "authz": authorization})
    assert sorted(ordered) == sorted(spelling)


# ---- External account binding

EAB = {"--eab-kid": "me", "--eab-hmac-key": SECRET}
BOUND = {"eab": {"me": base64.urlsafe_b64decode(SECRET)}}


@pytest.mark.parametrize("refusal", [
    pytest.param(None, marks=core, id="of-the-CA"),
    pytest.param(problem("externalAccountRequired", 403), id="in-other-words")])
def test_the_account_is_looked_up_first(trial, refusal):
    """The pair, which may be good for one use only, is sent when the look-up has been refused."""
    sent = []

    def account(request, reply):
        """Keep what was sent; refuse the first."""
        sent.append(set(request.payload) & {"onlyReturnExisting", "externalAccountBinding"})
        if refusal and len(sent) == 1:
            refusal(request, reply)
    trial.works({"newAccount": account}, ca=BOUND, args=EAB)
    assert sent == [{"onlyReturnExisting"}, {"externalAccountBinding"}]


@pytest.mark.parametrize("fault, words, times", [
    (REFUSED, DETAIL, 1), (None, "the external account is unknown", 2)], ids=["key", "pair"])
def test_the_account_is_refused(trial, fault, words, times):
    """The refusal is told, but not the pair's key; the pair is not spent on a key that is bad."""
    result = trial.fails({"newAccount": fault}, words, args=EAB,
                         ca={"eab": {"me": b"another key" * 4}})
    assert result.ca.count("newAccount") == times


# ---- Nothing twice

@pytest.mark.parametrize("resource, length", [("directory", None), ("certificate", 50000010)])
def test_an_answer_that_is_too_long(trial, resource, length):
    """That is an error at once, since it will not be shorter next time."""
    result = trial.fails({resource: delivered(flood(length))}, "localhost", "bytes", **SOON)
    assert result.ca.count(resource) == 1


@pytest.mark.parametrize("answer, orders", [
    (problem("alreadyReplaced", 409), [True, False]), (problem("rateLimited", 403), [True]),
    (replace({"detail": "as scripted"}, 429), [True]),
    (problem("serverInternal", 503), [True, True])],
    ids=["refused", "limited", "limited-without-a-type", "outage"])
def test_replaces_is_refused(trial, answer, orders):
    """The order is repeated without it, with a warning that has the CA's words; but a rate limit
    or an outage meets any order: another one would only make it worse."""
    issuer, sent = pki.Issuer(), []
    old = issuer.leaf(trial.names, pki.load_key(trial.key).public_key(), days=(-80, 10))
    fullchain = trial.site / "fullchain.pem"
    fullchain.write_bytes(pki.pem(old, issuer.intermediate))
    trial.options.update({"--renew": True, "--fullchain-file": fullchain})

    def order(request, reply):
        """An order that does not say what it replaces is welcome."""
        sent.append("replaces" in request.payload)
        if sent[-1]:
            answer(request, reply)
    start = old.not_valid_before_utc
    with trial.serve({"newOrder": order}, issuer=issuer, window=[start, start + DAY]) as ca:
        result = trial.letsacme(*trial.arguments(), ca=ca, scale=0.01)
    assert (result.status == 0) == (not all(sent)) and sent[:2] == orders, result.err
    told = re.findall("^[WE]: .*", result.err, re.M)
    assert "as scripted" in told[-1] and (len(told) == 1 or len(sent) > 2)
