"""--renew: when a certificate is due, what the CA is told, and that nothing breaks on the way."""
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
from faults import problem
from pki import DER, block, check_chain, load_chain

core = pytest.mark.core
script = support.module()
DAY = datetime.timedelta(days=1)
PAST = (-2, -1)                             # a window, in days from now: it is wanted now
NAMES = ["a.example", "b.example"]
PUBLIC = pki.new_key().public_key()
ISSUER = pki.Issuer()


def now():
    """The time, in whole seconds, which is what certificates know."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def window_of(start, end):
    """A window that is given in days from now."""
    return now() + start * DAY, now() + end * DAY


def information(start, end):
    """The same as a CA's answer."""
    texts = [each.isoformat() for each in window_of(start, end)]
    return json.dumps({"suggestedWindow": dict(zip(("start", "end"), texts))})


def moment_in(log):
    """The time at which, a run says, the certificate is due."""
    date = re.search("^Due for renewal: (.*)$", log, re.M).group(1)
    return parsedate_to_datetime(date).replace(tzinfo=datetime.timezone.utc)


def lifetime_of(certificate):
    """How long a certificate is valid."""
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


# ---- When it is due, in this process

def informed(information, status=200):
    """A CA that gives this renewal information, or has none."""
    response = SimpleNamespace(status=status, headers=email.message.Message())
    return SimpleNamespace(
        directory=lambda: {} if information is None else {"renewalInfo": "https://ca.example/info"},
        ask=lambda url, method: script.read_answer(url, response, information.encode()))


@pytest.fixture
def decide(monkeypatch, capfd):
    """decide(certificate, information, ...): is it due, when, and is there a warning?"""
    monkeypatch.setattr(script.log, "quiet", False)

    def make(certificate, *information, names=NAMES, public=None, outputs=()):
        [old] = script.read_certificates(pki.pem(certificate), "old")
        request = SimpleNamespace(names=dict.fromkeys(names), public_key=public or old.public_key)
        due = script.is_due(informed(*information), request, old, dict(outputs))
        said = capfd.readouterr().err
        moment = moment_in(said) if " GMT" in said else None
        return due, moment, bool(re.search("^W: .*renewal", said, re.M))
    return make


@pytest.mark.parametrize("days, start, end, due", [
    ((-1, 89), 10, 20, False), ((-1, 89), -1, 3, None), ((-1, 89), -3, 1, True),
    ((-1, 89), 1000, 2000, False), ((-1, 89), -1, 2000, None), ((-82, 8), 100, 200, True)])
def test_window(days, start, end, due, decide):
    """The moment is a point of the first half of the CA's window that the certificate decides.

    It is the same at each look, and in each version of the script; a window that is far ahead, or
    far too long, leaves the last tenth of the lifetime for renewing.
    """
    old, window = ISSUER.leaf(NAMES, PUBLIC, days), window_of(start, end)
    share = int(old.fingerprint(hashes.SHA256()).hex()[:8], 16) / 2 ** 32
    wanted = min(window[0] + share * (window[1] - window[0]) / 2,
                 old.not_valid_after_utc - lifetime_of(old) / 10)
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
    old = ISSUER.leaf(NAMES, PUBLIC)
    text = answer if isinstance(answer, str) else information(*answer)
    due, moment, warned = decide(old, text, status)
    wanted = old.not_valid_after_utc - lifetime_of(old) / 3
    assert abs(moment - wanted) <= datetime.timedelta(seconds=1) and not due and warned


@pytest.mark.parametrize("identifier", [
    (None, None, None), (b"", None, None), (None, [x509.DirectoryName(pki.common_name("x"))], 5)],
    ids=["empty", "of no bytes", "by name"])
def test_no_key_identifier(identifier, decide):
    """A certificate without an authority key identifier has no name in renewal information."""
    old = ISSUER.leaf(NAMES, PUBLIC, authority=x509.AuthorityKeyIdentifier(*identifier))
    due, moment, warned = decide(old, information(*PAST))
    assert not due and not warned


def test_identifier_with_leading_zeros():
    """A serial number that an odd CA has padded with zero bytes is taken as it is."""
    der = ISSUER.leaf(NAMES, PUBLIC, serial=0x12345678, authority=b"\1").public_bytes(DER)
    padded = der.replace(b"\x02\x04\x12\x34\x56\x78", b"\x02\x04\0\0\x56\x78", 1)
    [old] = script.read_certificates(block(padded), "old")
    assert padded != der and old.renewal_id == "AQ.AABWeA"


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


# ---- Runs against the scripted CA

@pytest.fixture
def renewal(trial):
    """renewal(days, script, ...) renews a certificate of these days, with the information that it
    is wanted now; gives the result, and the identifiers that the CA was asked for and told of."""
    fullchain = trial.site / "fullchain.pem"
    trial.options.update({"--renew": True, "--fullchain-file": fullchain})

    def make(days, script=None, **more):
        public = pki.load_key(trial.key).public_key()
        old = ISSUER.leaf(trial.names, public, days, **more)
        fullchain.write_bytes(pki.pem(old))
        asked, told = [], []
        script = {"renewalInfo": lambda request, reply: asked.append(request.id),
                  "newOrder": lambda request, reply: told.append(request.payload.get("replaces")),
                  **(script or {})}
        with trial.serve(script, window=window_of(*PAST), issuer=ISSUER) as ca:
            ca.issued[pki.ari_id(old)] = old
            result = trial.letsacme(*trial.arguments(), ca=ca,
                                    constants={**trials.WAITS, **trials.IN_VAIN})
        assert (result.status == 0) == (fullchain.read_bytes() != pki.pem(old))
        return result, asked, told
    return make


def test_not_asked(renewal):
    """Nothing depends on what the CA has to say of what has expired, nor does the order name it."""
    result, asked, told = renewal((-90, -1), {"renewalInfo": problem("serverInternal", 500)})
    assert (result.status, asked, told) == (0, [], [None]), result.err


@core
def test_identifier(renewal):
    """The CA is asked for, and told of, the right certificate: the example of RFC 9773."""
    result, asked, told = renewal((-9, 81), serial=0x87654321, authority=bytes.fromhex(
        "69885b6b87464041e1b37b847ba0ae2cde01c8d4"))
    assert result.status == 0, result.err
    assert asked == told == ["aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"]


def test_the_information_cannot_be_had(renewal):
    """A CA that is down for that leaves the rule by lifetime."""
    result, _, told = renewal((-9, 81), {"renewalInfo": problem("serverInternal", 500)})
    assert (result.status, told) == (3, []) and re.search("^W: .*renewal", result.err, re.M)


# ---- Runs against Pebble

class Site:
    """Names whose certificate is in a file and is to be renewed."""

    def __init__(self, letsacme, hosts, arguments, pebble):
        self.letsacme, self.hosts, self.pebble = letsacme, hosts, pebble
        self.file = letsacme.folder / "fullchain.pem"
        self.arguments = [*arguments, "--renew", "--fullchain-file", self.file]

    def renew(self, status, *more, **options):
        """A run of the cron job; gives its log, and the requests that Pebble has served in it."""
        before = len(self.pebble.requests)
        result = self.letsacme(*self.arguments, *more, ca=self.pebble, **options)
        assert (result.status, result.out) == (status, ""), result.err
        return result.err, self.pebble.requests[before:]

    def issue(self):
        """Gets the first certificate; returns it in PEM, with its chain.

        Pebble finds no order of a certificate whose serial number needs a zero byte in front in
        DER, which is one in 256, and says for ever that this is an internal error: so not that one.
        """
        while not self.file.exists() or not load_chain(
                self.file.read_text())[0].serial_number.bit_length() % 8:
            self.file.unlink(missing_ok=True)
            self.renew(0)
        return self.file.read_text()


@pytest.fixture
def site(letsacme, basics, names, pebbles):
    """A site of two names and a Pebble that refuses no nonce, so that requests can be counted."""
    hosts = names(2)
    return Site(letsacme, hosts, basics(hosts), pebbles(PEBBLE_WFE_NONCEREJECT=0))


def test_first_run_and_second(site, nginx, key):
    """Without a certificate it gets one; then it does nothing, and says so by exit status 3."""
    check_chain(site.issue(), site.hosts, key(), site.pebble.root)
    for host in site.hosts:
        (nginx.root(host) / ".well-known/acme-challenge").rmdir()
        (nginx.root(host) / ".well-known").rmdir()
    before = trials.snapshot(site.letsacme.folder)
    log, served = site.renew(3)
    assert now() + 50 * DAY < moment_in(log) < now() + 70 * DAY
    assert served == ["GET /dir", "GET /draft-ietf-acme-ari-03/renewalInfo/"]
    assert not any(list(nginx.root(host).iterdir()) for host in site.hosts)
    assert site.renew(3, "--quiet")[0] == ""
    assert trials.snapshot(site.letsacme.folder) == before


def test_months_pass(site, key):
    """Pebble's own window lies a day around the last third: the clock alone makes it due.

    The order names the certificate it replaces, once; a second time Pebble wants none of it, nor
    from another account.
    """
    old = site.issue()
    site.renew(3, clock="+58d")
    assert site.file.read_text() == old
    _, served = site.renew(0, clock="+61d")
    assert served.count("POST /order-plz") == 1
    serial = "%x" % load_chain(old)[0].serial_number
    order = re.search(r"Issued certificate serial 0*%s for order (\S+)" % serial, site.pebble.log)
    assert "replacement of \"%s\"" % order.group(1) in site.pebble.log
    for more, word in [((), "alreadyReplaced"), (("--account-key", key("p256", "another")), "")]:
        site.file.write_text(old)
        log, served = site.renew(0, *more, clock="+61d")
        assert served.count("POST /order-plz") == 2 and re.search("^W: .*" + word, log, re.M)
        assert site.file.read_text() != old
