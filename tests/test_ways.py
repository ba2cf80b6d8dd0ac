"""The ways of CAs: what real ones do that RFC 8555 allows, or does not forbid, or that they do all
the same. Each was seen on a server that people use.

The runs are judged by trials.py. Where a wrong client waits for ten minutes, the test gives
a run a tenth of that at most: SOON has it scaled down to one minute, and ended after half of it.
"""
import base64
import random
import re

import pki
import pytest
from faults import ERROR, MISSING, change, delivered, fields, flood, problem, put, replace
from trials import SECRET, refusals

core = pytest.mark.core

SOON = {"scale": 0.1, "timeout": 30}
DETAIL = "there is no route to your host"
REASON = {"type": ERROR + "connection", "detail": DETAIL, "status": 400}
STUCK = fields(status="pending")
BAD_NONCE = problem("badNonce", 400)
SIGNED = ["newAccount", "newOrder", "authz", "challenge", "order", "finalize", "certificate"]
LONG = ["600", "86400", "Fri, 01 Jan 2100 00:00:00 GMT"]


def told_of(result, name):
    """The error lines that name a name (which is not just the end of another)."""
    return [line for line in refusals(result.err)
            if re.search(r"(?<![\w.])%s\b" % re.escape(name), line)]


# ---- 1. Retry-After

@pytest.mark.parametrize("after", LONG)
def test_patience_with_a_patient_ca(trial, after):
    """A CA that asks for ten minutes, or a day, is looked at again within half a minute."""
    wait = change(headers={"Retry-After": after})
    result = trial.works({"finalize": wait, "order": wait}, scale=0.02,
                         ca={"validation": 2, "issuance": 2})
    assert all(0.5 < pause < 10 for pause in result.ca.pauses("order")[:1])


@core
def test_long_retry_after_on_a_challenge(trial):
    """What comes with the answer to a challenge says nothing about the order."""
    wait = change(headers={"Retry-After": "86400"})
    result = trial.works({"challenge": wait, "authz": wait, "newOrder": wait, "newAccount": wait},
                         scale=1, timeout=20)
    assert result.ca.count("newOrder") == 1


def test_retry_after_counts_once(trial):
    """The answer after it, which has none, is followed by a short pause again."""
    result = trial.works({"order": [change(headers={"Retry-After": "20"})]}, scale=0.1,
                         ca={"validation": 4})
    first, second, *_ = result.ca.pauses("order")
    assert first > 1.9 and second < 1.5


# ---- 2. Failures of the validation

def look(authorization, challenge, error=None):
    """The states of an authorization and of its challenge once that has been answered."""
    def fault(request, reply):
        http_01 = reply.body["challenges"][2]
        if http_01["status"] != "pending":
            reply.body["status"] = authorization
            http_01.update({"status": challenge, "error": error} if error else
                           {"status": challenge})
    return fault


PENDING = look("pending", "pending")
SHOWN = {
    "refused-403": {"challenge": problem("unauthorized", 403, detail=DETAIL)},
    "refused-400": {"challenge": problem("connection", 400, detail=DETAIL)},
    "refused-404-in-plain-words": {"challenge": problem("", 404, type=None, detail=DETAIL)},
    "invalid-in-the-answer": {"challenge": fields(status="invalid", error=REASON),
                              "authz": PENDING},
    "invalid-in-the-answer-and-why-elsewhere": {
        "challenge": fields(status="invalid"),
        "authz": look("invalid", "invalid", REASON)},
    "pending-with-an-error-in-the-answer": {
        "challenge": fields(status="pending", error=REASON), "authz": PENDING},
    "pending-with-an-error": {"authz": look("pending", "pending", REASON)},
    "invalid": {"authz": look("invalid", "invalid", REASON)},
    "invalid-challenge-only": {"authz": look("pending", "invalid", REASON)},
    "invalid-and-the-challenge-processing": {
        "authz": look("invalid", "processing", REASON)},
}


@pytest.mark.parametrize("script", [
    pytest.param(script, id=name, marks=[core] * (name == "invalid"))
    for name, script in SHOWN.items()])
def test_a_failure_is_seen_wherever_it_shows(trial, script):
    """While the order stays pending for ever: at once, with names and the CA's reason."""
    result = trial.fails({"order": STUCK, **script}, **SOON)
    for name in trial.names:
        assert any(DETAIL in line for line in told_of(result, name)), result.err
    assert result.ca.count("finalize") == 0


@pytest.mark.parametrize("script, word", [
    ({"challenge": fields(status="invalid"), "authz": PENDING}, "invalid"),
    ({"authz": look("invalid", "processing")}, "invalid"),
    ({"authz": look("expired", "processing")}, "expired"),
    ({"authz": look("deactivated", "pending")}, "deactivated"),
    ({"authz": look("revoked", "valid")}, "revoked"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_failure_without_a_reason(trial, script, word):
    """If the CA gives none, the status is told, just as soon."""
    result = trial.fails({"order": STUCK, **script}, **SOON)
    for name in trial.names:
        assert any(word in line for line in told_of(result, name)), result.err


def test_a_challenge_is_refused_for_a_day(trial):
    """That is no reason to wait, and told with the name that it is about."""
    later = problem("rateLimited", 429, {"Retry-After": "86400"}, detail=DETAIL)
    result = trial.fails({"challenge": later}, DETAIL, **SOON)
    assert any(told_of(result, name) for name in trial.names), result.err


@pytest.mark.parametrize("authorization", [None, PENDING], ids=["honest", "pending"])
def test_a_failure_shows_in_the_order_only(trial, authorization):
    """Its error is told, also where the authorizations say nothing."""
    script = {"order": fields(status="invalid", error=REASON), "authz": authorization}
    trial.fails(script, DETAIL, **SOON)


@pytest.mark.parametrize("where", ["challenge", "authz"])
def test_one_of_two_names_fails(trial, where):
    """The name that fails is told, with the reason; not one that the CA has found valid."""
    bad = set()

    def authorization(request, reply):
        """Only one name is in trouble."""
        if reply.body["identifier"]["value"] == "site.example":
            bad.add(request.id)
            look(*{"challenge": ("pending", "processing"),
                   "authz": ("invalid", "processing", REASON)}[where])(request, reply)

    def challenge(request, reply):
        """Its challenge is refused."""
        if where == "challenge" and request.id in bad:
            problem("connection", 400, detail=DETAIL)(request, reply)
    result = trial.fails({"order": STUCK, "authz": authorization, "challenge": challenge}, **SOON)
    [line] = refusals(result.err)
    assert DETAIL in line and told_of(result, "site.example")
    assert not told_of(result, "www.site.example")


def test_after_ten_minutes(trial):
    """Each name that is not valid is told with its status, and no other."""
    def authorization(request, reply):
        """One name is never done."""
        if reply.body["identifier"]["value"] == "site.example":
            look("pending", "processing")(request, reply)
    result = trial.fails({"order": STUCK, "authz": authorization}, scale=0.005)
    assert told_of(result, "site.example") and not told_of(result, "www.site.example")
    assert any("pending" in line for line in told_of(result, "site.example"))


# ---- 3. Trouble, then a refusal

BUSY = problem("serverInternal", 503)
HEARD = problem("serverInternal", 503, heard=True)


@pytest.mark.parametrize("kind, status", [("badCSR", 400), ("orderNotReady", 403),
                                          ("unauthorized", 401)])
def test_finalize_is_refused_after_trouble(trial, kind, status):
    """What decides is the order, which is where it was: the CA's reason is told, at once."""
    refused = problem(kind, status, detail=DETAIL)
    result = trial.fails({"finalize": [BUSY, refused]}, DETAIL, kind, **SOON)
    assert result.ca.count("finalize") == 2


@core
@pytest.mark.parametrize("order", [STUCK, fields(status="invalid")], ids=["pending", "invalid"])
def test_a_challenge_is_refused_after_trouble(trial, order):
    """The order has not moved, or has failed: the reason is told, with the name."""
    refused = problem("unauthorized", 403, detail=DETAIL)
    result = trial.fails({"challenge": [BUSY, refused, BUSY, refused], "order": order,
                          "authz": PENDING}, **SOON)
    for name in trial.names:
        assert any(DETAIL in line for line in told_of(result, name)), result.err


@pytest.mark.parametrize("order", ["invalid", "processing"])
def test_the_first_words_count(trial, order):
    """What the CA says first is told, not how the order looks in the end."""
    trial.fails({"finalize": problem("badCSR", 400, detail=DETAIL),
                 "order": [None, *[fields(status=order)] * 1000]}, DETAIL, "badCSR", scale=0.005)


def test_refusals_that_do_not_matter(trial):
    """The first try got through, though its answer was lost: the order shows it and goes on."""
    refused = problem("malformed", 403)
    trial.works({"challenge": [HEARD, refused] * 2, "finalize": [HEARD, refused]}, timeout=20)
    trial.works({"challenge": problem("malformed", 400, heard=True)}, timeout=20)


@pytest.mark.parametrize("script", [{"challenge": [None] + [HEARD] * 1000}, {"finalize": HEARD}],
                         ids=["challenge", "finalize"])
def test_answers_that_never_get_through(trial, script):
    """The CA has done what it was asked, but never manages to say so: the order does."""
    trial.works(script, waits={"REQUEST_PATIENCE": 1.2, "DOUBT_PATIENCE": 5})


def test_the_answer_to_no_challenge_gets_through(trial):
    """The run ends after one of them, with what the CA said, since others would fare no better."""
    result = trial.fails({"challenge": HEARD, "order": STUCK}, "as scripted")
    assert told_of(result, "site.example")


# ---- 4. Headers

def strict(request, reply):
    """Refuse a request without a body that has the type of one, as some servers do."""
    if "Content-Type" in request.headers or "Content-Length" in request.headers:
        problem("malformed", 400, detail="a type, but no body")(request, reply)


@core
def test_headers_of_requests_without_a_body(trial):
    """GET and HEAD carry no Content-Type."""
    trial.works({"directory": strict, "newNonce": strict})


def test_headers_of_the_self_check(trial, site, httpserver):
    """It says who it is and sends no type of a body that it has not."""
    trial.works(ca=site())
    assert len(httpserver.log) == 2
    for request, _ in httpserver.log:
        assert request.headers["User-Agent"].startswith("letsacme/")
        assert "Content-Type" not in request.headers


# ---- 5. An order that is valid, but has no certificate yet

def test_valid_without_a_certificate(trial):
    """It is looked at again: as the answer to finalize, and as the order."""
    trial.works({"finalize": [fields(status="valid")]})
    trial.works({"finalize": [fields(status="valid")],
                 "order": [None, *[fields(status="valid", certificate=None)] * 2]})


def test_processing_with_a_certificate(trial):
    """Pebble, for one, shows for a moment what will be: the status counts."""
    trial.works({"order": [None, *[fields(status="processing")] * 3]})


def test_valid_without_a_certificate_for_ever(trial):
    """The run ends, and the error says what is missing, not that a valid order has failed."""
    empty = put("certificate", MISSING)
    trial.fails({"order": [None, *[empty] * 1000], "finalize": fields(status="valid")},
                "certificate", scale=0.005)


# ---- 6. and 8. Nonces

def test_new_nonce_brings_none(trial):
    """That is said, in words, and not tried again and again."""
    result = trial.fails({"newNonce": change(headers={"Replay-Nonce": None})},
                         "newNonce", "Replay-Nonce")
    assert result.ca.count("newNonce") < 20


@core
def test_nine_of_ten_nonces_are_refused(trial):
    """As in acme-tiny's own tests: everywhere, by chance, 32 times in a row among others."""
    chance = random.Random(6)

    def rejected(request, reply):
        """Refuse nine of ten."""
        if chance.random() < 0.9:
            BAD_NONCE(request, reply)
    trial.works({resource: rejected for resource in SIGNED})


def test_a_hundred_nonces_are_refused(trial):
    """So many in a row are borne, no more."""
    trial.works({"newOrder": [BAD_NONCE] * 99})
    result = trial.fails({"newOrder": BAD_NONCE}, "badNonce")
    assert result.ca.count("newOrder") <= 110


# ---- 7. The spelling of names

@pytest.mark.parametrize("changed", [None, str.lower, str.upper])
def test_names_as_the_csr_spells_them(trial, csr, changed):
    """They are ordered letter by letter alike, whatever the CA makes of them in its answers."""
    spelling, ordered = ["WWW.Site.Example", "site.exAMPLE"], []
    trial.options["--csr"] = csr(spelling[:1], cn=spelling[1])

    def order(request, reply):
        """Keep what was ordered."""
        ordered.extend(each["value"] for each in request.payload["identifiers"])

    def authorization(request, reply):
        """Show the name in another spelling."""
        if changed:
            name = reply.body["identifier"]
            reply.body["identifier"] = {**name, "value": changed(name["value"])}
    trial.works({"newOrder": order, "authz": authorization})
    assert sorted(ordered) == sorted(spelling)


# ---- 9. External account binding

EAB = {"--eab-kid": "me", "--eab-hmac-key": SECRET}
BOUND = {"eab": {"me": base64.urlsafe_b64decode(SECRET)}}


@pytest.mark.parametrize("kind, status", [("externalAccountRequired", 403),
                                          ("externalAccountRequired", 400),
                                          ("accountDoesNotExist", 404)])
def test_the_account_is_looked_up_first(trial, kind, status):
    """The pair, which may be good for one use only, is sent when the look-up has been refused."""
    sent = []

    def account(request, reply):
        """Keep what was sent; refuse the first."""
        sent.append(request.payload)
        if len(sent) == 1:
            problem(kind, status)(request, reply)
    trial.works({"newAccount": account}, ca=BOUND, args=EAB)
    assert [set(payload) & {"onlyReturnExisting", "externalAccountBinding"} for payload in sent] \
        == [{"onlyReturnExisting"}, {"externalAccountBinding"}]


def test_another_refusal_of_the_look_up(trial):
    """Then the pair is not spent."""
    refused = problem("unauthorized", 403, detail=DETAIL)
    result = trial.fails({"newAccount": refused}, DETAIL, ca=BOUND, args=EAB)
    assert result.ca.count("newAccount") == 1


# ---- 10. Nothing that is not needed, and nothing twice

@core
def test_a_ready_order(trial):
    """Its authorizations are of no interest."""
    assert trial.works(ca={"reuse": True}).ca.count("authz") == 0


@pytest.mark.parametrize("length", [50000010, None])
@pytest.mark.parametrize("resource", ["directory", "order", "certificate"])
def test_an_answer_that_is_too_long(trial, resource, length):
    """That is an error at once, since it will not be shorter next time."""
    result = trial.fails({resource: delivered(flood(length))}, "localhost", "bytes", **SOON)
    assert result.ca.count(resource) == 1


@pytest.mark.parametrize("body", [b"{", b"{oops}", b"{\"a\": \"\xff\"}", b"{}\n{}"], ids=repr)
def test_a_server_in_trouble_has_no_words(trial, body):
    """A 5xx passes, be its body JSON or not (see also test_protocol.py)."""
    trouble = [replace(body, "application/json", 503)]
    trial.works({resource: trouble for resource in ["directory", "newNonce", *SIGNED]})


@pytest.fixture
def renewal(trial):
    """renewal(answer) is a renewal that the CA wishes for; see below for the answer."""
    issuer = pki.Issuer()
    public = pki.load_key(trial.key).public_key()
    old = issuer.leaf(trial.names, public, days=(-80, 10))
    fullchain = trial.site / "fullchain.pem"
    fullchain.write_bytes(pki.pem(old, issuer.intermediate))
    trial.options.update({"--renew": True, "--fullchain-file": fullchain})
    window = [old.not_valid_before_utc, old.not_valid_before_utc + (
        old.not_valid_after_utc - old.not_valid_before_utc) / 2]

    def run(answer, **more):
        """Answer an order in this way if it says what it replaces; return which orders did."""
        orders = []

        def order(request, reply):
            """The one that does not say it is welcome."""
            orders.append("replaces" in request.payload)
            if orders[-1]:
                answer(request, reply)
        script = {"newOrder": order, "renewalInfo": strict}
        with trial.serve(script, issuer=issuer, window=window) as ca:
            ca.issued[pki.ari_id(old)] = old
            result = trial.letsacme(*trial.arguments(), ca=ca, **{"scale": 0.02, **more})
        return result, orders
    return run


@core
@pytest.mark.parametrize("answer", [
    problem("alreadyReplaced", 409), problem("malformed", 404), problem("serverInternal", 400),
    problem("unauthorized", 403)], ids=["replaced", "unknown", "odd", "another-account"])
def test_replaces_is_refused(renewal, answer):
    """The order is repeated without it, with a warning that has the CA's words."""
    result, orders = renewal(answer)
    assert (result.status, orders) == (0, [True, False]), result.err
    assert re.findall("^W: .*as scripted|^W: ", result.err, re.M) == [
        re.search("^W: .*as scripted", result.err, re.M).group()]


@pytest.mark.parametrize("answer, least", [
    (problem("rateLimited", 429), 1), (problem("rateLimited", 403), 1),
    (problem("rateLimited", 429, {"Retry-After": "86400"}), 1),
    (replace({"detail": "as scripted"}, "application/json", 429), 1),
    (problem("serverInternal", 503), 2)],
    ids=["429", "403", "for-a-day", "without-a-type", "outage"])
def test_replaces_is_not_what_is_refused(renewal, answer, least):
    """A rate limit or an outage meets any order: another one would only make it worse."""
    result, orders = renewal(answer)
    assert result.status == 1 and len(orders) >= least and all(orders), result.err
    assert least > 1 or len(orders) == 1
    assert re.search("^E: .*as scripted", result.err, re.M)
