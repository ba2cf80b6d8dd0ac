"""--renew: when a certificate is due, and what is done then (see also test_ways.py)."""
import datetime
import email.message
import json
import re
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import pki
import pytest
import support
import trials
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pki import DER, check_chain, load_chain

script = support.module()
DAY = datetime.timedelta(days=1)
PAST = (-2, -1)                             # a window, in days from now: it is wanted now
NAMES = ["a.example", "b.example"]
PUBLIC = pki.new_key().public_key()
ISSUER = pki.Issuer()


def now():
    """The time, in whole seconds, which is what certificates know."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def information(start, end):
    """A CA's answer, with a window that is given in days from now."""
    texts = [(now() + each * DAY).isoformat() for each in (start, end)]
    return json.dumps({"suggestedWindow": dict(zip(("start", "end"), texts))})


def moment_in(log):
    """The time, if there is one, at which a run says that the certificate is due."""
    date = re.search("^Due for renewal: (.* GMT)$", log, re.M)
    return date and parsedate_to_datetime(date.group(1))


@pytest.fixture
def decide(monkeypatch, capfd):
    """decide(certificate, information, ...): is it due, when, and is there a warning?"""
    monkeypatch.setattr(script.log, "quiet", False)

    def make(certificate, information, status=200, names=NAMES, public=None, outputs=()):
        response = SimpleNamespace(status=status, headers=email.message.Message())
        ca = SimpleNamespace(
            directory=lambda: {} if information is None else {"renewalInfo": "https://x.example/"},
            ask=lambda url, method: script.read_answer(url, response, information.encode()))
        [old] = script.read_certificates(pki.pem(certificate), "old")
        request = SimpleNamespace(names=dict.fromkeys(names), public_key=public or old.public_key)
        due = script.is_due(ca, request, old, dict(outputs))
        said = capfd.readouterr().err
        return due, moment_in(said), bool(re.search("^W: .*renewal", said, re.M))
    return make


@pytest.mark.parametrize("days, start, end, due", [
    ((-1, 89), 10, 20, False), ((-1, 89), -1, 3, None), ((-1, 89), -3, 1, True),
    ((-1, 89), 1000, 2000, False), ((-1, 89), -1, 2000, None), ((-82, 8), 100, 200, True)])
def test_window(days, start, end, due, decide):
    """The moment is a point of the first half of the CA's window that the certificate decides, the
    same at each look, and in each version of the script; a window that is far ahead, or far too
    long, leaves the last tenth of the lifetime for renewing."""
    old = ISSUER.leaf(NAMES, PUBLIC, days)
    share = int(old.fingerprint(hashes.SHA256()).hex()[:8], 16) / 2 ** 32
    wanted = min(now() + (start + share * (end - start) / 2) * DAY,
                 old.not_valid_after_utc - 9 * DAY)
    found, moment, warned = decide(old, information(start, end))
    assert abs(moment - wanted) <= datetime.timedelta(seconds=2)
    assert found == (wanted < now()) and due in (None, found) and not warned


@pytest.mark.parametrize("lifetime, age, due", [
    (90, 59.9, False), (90, 60.1, True), (45, 29.9, False), (45, 30.1, True), (6, 2.9, False),
    (6, 3.1, True), (10.1, 6.6, False), (9.9, 5.1, True), (36500, 1, False)])
def test_lifetime(lifetime, age, due, decide):
    """A third of the lifetime is left, or half of less than ten days."""
    old = ISSUER.leaf(NAMES, PUBLIC, (-age, lifetime - age))
    assert decide(old, None)[::2] == (due, False)


@pytest.mark.parametrize("answer, status", [
    ((20, 10), 200), (PAST, 404), (PAST, 500), *((text, 200) for text in (
        "<html>no JSON</html>", "[]", "{}", '{"suggestedWindow": null}',
        '{"suggestedWindow": "now"}', '{"suggestedWindow": {"start": "2020-01-01T00:00:00Z"}}',
        '{"suggestedWindow": {"start": 1577836800, "end": 1577836801}}',
        '{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "soon"}}',
        '{"suggestedWindow": {"start": "2020-01-01T00:00:00", "end": "2020-01-02T00:00:00"}}'))])
def test_odd_information(answer, status, decide):
    """Renewal information that makes no sense is as good as none, and is warned of."""
    old = ISSUER.leaf(NAMES, PUBLIC, (-1, 89))
    text = answer if isinstance(answer, str) else information(*answer)
    due, moment, warned = decide(old, text, status)
    wanted = old.not_valid_after_utc - 30 * DAY
    assert abs(moment - wanted) <= datetime.timedelta(seconds=1) and not due and warned


@pytest.mark.parametrize("identifier", [
    (None, None, None), (b"", None, None), (None, [x509.DirectoryName(pki.common_name("x"))], 5)],
    ids=["empty", "of no bytes", "by name"])
def test_no_key_identifier(identifier, decide):
    """A certificate without an authority key identifier has no name in renewal information."""
    old = ISSUER.leaf(NAMES, PUBLIC, authority=x509.AuthorityKeyIdentifier(*identifier))
    assert decide(old, information(*PAST))[::2] == (False, False)


def test_identifier_with_leading_zeros():
    """A serial number that an odd CA has padded with zero bytes is taken as it is."""
    der = ISSUER.leaf(NAMES, PUBLIC, serial=0x12345678, authority=b"\1").public_bytes(DER)
    padded = der.replace(bytes.fromhex("020412345678"), bytes.fromhex("020400005678"))
    assert script.Certificate(padded).renewal_id == "AQ.AABWeA"


def test_due_by_what_is_asked(decide, tmp_path):
    """Another name or key, or an output that is new or empty (but not an empty chain) is reason
    enough; fewer names are not."""
    old = ISSUER.leaf(NAMES, PUBLIC)
    empty = tmp_path / "empty"
    empty.touch()
    for due, asked in ((False, {}), (False, {"names": NAMES[:1]}), (True, {"public": b"another"}),
                       (True, {"names": [*NAMES, "c.example"]}),
                       (True, {"outputs": {"chain_file": tmp_path / "missing"}}),
                       (True, {"outputs": {"cert_file": empty}}),
                       (False, {"outputs": {"chain_file": empty}})):
        assert decide(old, information(10, 20), **asked)[0] == due, asked


def test_old_certificates_of_no_use(tmp_path):
    """What cannot be read, has expired, or a web server was started with, is as good as none."""
    good = pki.pem(ISSUER.leaf(NAMES, PUBLIC))
    lines, file = good.split(b"\n", 2), tmp_path / "fullchain.pem"
    for content in (b"", good.replace(b"\n", b"\n+", 5), pki.pem(ISSUER.root),
                    b"\n".join([lines[0], b"A" * 64, lines[2]]),
                    *(pki.pem(ISSUER.leaf(NAMES, PUBLIC, (-90, end))) for end in (-1, -0.001))):
        file.write_bytes(content)
        assert script.read_old(str(file)) is None, content
    file.write_bytes(good)
    assert script.read_old(str(file))


def test_months_pass(letsacme, basics, names, pebbles, nginx, key):
    """Without a certificate it gets one, but then does nothing, and says so by exit status 3, until
    the clock alone makes it due: Pebble's own window lies a day around the last third. The order
    names what it replaces, once: then Pebble wants none of it, nor ever from another account."""
    hosts, file = names(2), letsacme.folder / "fullchain.pem"
    arguments = [*basics(hosts), "--renew", "--fullchain-file", file]
    pebble = pebbles(PEBBLE_WFE_NONCEREJECT=0)  # so that requests can be counted

    def renew(status, *more, **options):
        """A run of the cron job; gives its log, and the requests that Pebble has served in it."""
        before = len(pebble.requests)
        result = letsacme(*arguments, *more, ca=pebble, **options)
        assert (result.status, result.out) == (status, ""), result.err
        return result.err, pebble.requests[before:]

    # Pebble finds no order of a certificate whose serial number needs a zero byte in front in DER,
    # which is one in 256, and says for ever that this is an internal error: so not that one.
    serial = 0
    while not serial.bit_length() % 8:
        file.unlink(missing_ok=True)
        renew(0)
        serial = load_chain(file.read_text())[0].serial_number
    check_chain(file.read_text(), hosts, key(), pebble.root)
    for host in hosts:
        (nginx.root(host) / ".well-known/acme-challenge").rmdir()
        (nginx.root(host) / ".well-known").rmdir()
    before = trials.snapshot(letsacme.folder)
    log, served = renew(3)
    assert now() + 50 * DAY < moment_in(log) < now() + 70 * DAY
    assert served == ["GET /dir", "GET /draft-ietf-acme-ari-03/renewalInfo/"]
    assert renew(3, "--quiet")[0] == ""
    renew(3, clock="+58d")
    assert not any(list(nginx.root(host).iterdir()) for host in hosts)
    assert trials.snapshot(letsacme.folder) == before
    old = file.read_text()
    _, served = renew(0, clock="+61d")
    assert served.count("POST /order-plz") == 1
    order = re.search(r"Issued certificate serial 0*%x for order (\S+)" % serial, pebble.log)
    assert "replacement of \"%s\"" % order.group(1) in pebble.log
    for more, word in [((), "alreadyReplaced"), (("--account-key", key("p256", "another")), "")]:
        file.write_text(old)
        log, served = renew(0, *more, clock="+61d")
        assert served.count("POST /order-plz") == 2 and re.search("^W: .*" + word, log, re.M)
        assert file.read_text() != old
