"""--renew: when a certificate is due, what the CA is told, and that nothing breaks on the way."""
import datetime
import json
import re
from email.utils import parsedate_to_datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from faults import MISSING, problem, put, replace
from pki import DER, PEM, Issuer, ari_id, block, check_chain, common_name, load_chain, load_key, pem
from scripted_ca import ScriptedCA

DAY = datetime.timedelta(days=1)
INFO = ["GET /dir", "GET /draft-ietf-acme-ari-03/renewalInfo/"]


def now():
    """The time, in whole seconds, which is what certificates know."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def made_up(names, key, days, serial=None, authority=(b"authority", None, None), subject=""):
    """A certificate in PEM that no CA has issued, for the public key of a private key's file.

    days say from when, in days from now, until when it is valid; authority is what it tells of its
    issuer, whose name is "made up".
    """
    builder = x509.CertificateBuilder(
        common_name("made up"), common_name(subject), load_key(key).public_key(),
        serial or x509.random_serial_number(), *[now() + each * DAY for each in days])
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), not subject)
    if authority:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(*authority), False)
    made = builder.sign(ec.derive_private_key(1, ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(PEM).decode()


def moment_in(log):
    """The time at which, a run says, the certificate is due."""
    date = re.search("^Due for renewal: (.*)$", log, re.M).group(1)
    return parsedate_to_datetime(date).replace(tzinfo=datetime.timezone.utc)


class Site:
    """Names whose certificate is in a file and is to be renewed."""

    def __init__(self, letsacme, hosts, arguments, pebble):
        self.letsacme, self.hosts, self.pebble = letsacme, hosts, pebble
        self.file = letsacme.folder / "fullchain.pem"
        self.arguments = [*arguments, "--renew", "--fullchain-file", self.file]
        self.served = []

    def renew(self, *more, ca=None, **options):
        """A run of the cron job; what Pebble has served in it is kept in served."""
        before = len(self.pebble.requests)
        result = self.letsacme(*self.arguments, *more, ca=ca or self.pebble, **options)
        self.served = self.pebble.requests[before:]
        return result

    def issue(self):
        """Gets the first certificate; returns it in PEM, with its chain."""
        result = self.renew()
        assert (result.status, result.out) == (0, ""), result.err
        return self.file.read_text()

    def set_window(self, answer):
        """Has Pebble give this renewal information: a text, or the window's start and end."""
        if not isinstance(answer, str):
            window = dict(zip(("start", "end"), (each.isoformat() for each in answer)))
            answer = json.dumps({"suggestedWindow": window})
        self.pebble.management("/set-renewal-info/", json.dumps(
            {"Certificate": self.file.read_text(), "ARIResponse": answer}).encode())


@pytest.fixture
def site(letsacme, basics, names, pebbles):
    """A site of two names and a Pebble that refuses no nonce, so that requests can be counted."""
    hosts = names(2)
    return Site(letsacme, hosts, basics(hosts), pebbles(PEBBLE_WFE_NONCEREJECT=0))


# --- when it acts ---------------------------------------------------------------------------------

def states(folder):
    """What changes if a file of a folder is written or replaced (hosts is support's)."""
    found = {path: path.stat() for path in folder.rglob("*") if path.name != "hosts"}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in found.items()}


@pytest.mark.core
def test_first_run_and_second(site, nginx, key):
    """Without a certificate it gets one; then it does nothing, and says so by exit status 3."""
    check_chain(site.issue(), site.hosts, key(), site.pebble.root)
    for host in site.hosts:
        (nginx.root(host) / ".well-known/acme-challenge").rmdir()
        (nginx.root(host) / ".well-known").rmdir()
    before = states(site.letsacme.folder)
    result = site.renew()
    assert (result.status, result.out) == (3, "")
    assert now() + 50 * DAY < moment_in(result.err) < now() + 70 * DAY
    assert site.served == INFO
    assert not any(list(nginx.root(host).iterdir()) for host in site.hosts)
    result = site.renew("--quiet")
    assert (result.status, result.out, result.err) == (3, "", "")
    assert states(site.letsacme.folder) == before


@pytest.mark.core
def test_needs_fullchain_file(letsacme, basics, names, pebble):
    """--renew without --fullchain-file is wrong usage, and it is said why."""
    result = letsacme(*basics(names()), "--renew", "--cert-file", "cert.pem", ca=pebble)
    assert result.status == 2
    assert re.fullmatch("E: .*--renew .*--fullchain-file.*\n", result.err)


@pytest.mark.parametrize("change_of", ["name", "key", "output", "nothing"])
def test_due_by_what_is_asked(change_of, site, csr, config, names, key):
    """Another name or key, or an output that is new, is reason enough; without one it is not."""
    site.issue()
    hosts, more, domain_key = site.hosts, [], key()
    if change_of == "name":
        hosts = [*hosts, *names()]
        more = ["--csr", csr(hosts), "--config-json", config(hosts)]
    elif change_of == "key":
        domain_key = key("rsa2048")
        more = ["--csr", csr(hosts, key=domain_key)]
    elif change_of == "output":
        more = ["--cert-file", "cert.pem"]
    result = site.renew(*more)
    assert result.status == (0 if more else 3), result.err
    check_chain(site.file.read_text(), hosts, domain_key, site.pebble.root)
    assert site.renew(*more).status == 3


def test_more_names_than_asked(site, csr):
    """A certificate that has more names than the CSR is good for it."""
    site.issue()
    assert site.renew("--csr", csr(site.hosts[:1])).status == 3


OLD_FILES = {
    "empty": lambda pem: "",
    "garbled": lambda pem: pem.replace("\n", "\n+", 5),
    "broken DER": lambda pem: re.sub(r"(?s)(BEGIN.*?\n.*?\n)", r"\1" + "A" * 64, pem, count=1),
}


@pytest.mark.parametrize("spoil", OLD_FILES.values(), ids=OLD_FILES)
def test_useless_old_certificate(spoil, site, key):
    """An old certificate that cannot be read is simply replaced."""
    site.file.write_text(spoil(site.issue()))
    result = site.renew()
    assert result.status == 0, result.err
    check_chain(site.file.read_text(), site.hosts, key(), site.pebble.root)


@pytest.mark.parametrize("days, subject", [
    pytest.param((-1, 3650), "made up", marks=pytest.mark.core), ((-90, -1), ""),
    ((-90, -0.001), "")], ids=["self-signed", "expired", "expired just now"])
def test_the_ca_is_not_asked(days, subject, site, key, tmp_path):
    """What a web server was started with, or what has expired, is due, whatever its dates are.

    Nothing depends on what the CA has to say about it, and the order says nothing of it.
    """
    site.file.write_text(made_up(site.hosts, key(), days, subject=subject))
    asked, told = identifiers_of(site, tmp_path, problem("serverInternal", 500))
    assert (asked, told) == ([], [])


def test_dry_run_of_a_renewal(site, key):
    """With --test it always issues, to show that it can, and leaves the file alone."""
    before = site.issue()
    result = site.letsacme(*site.arguments, "--test", "--check-port", site.pebble.http_port,
                           constants={"LETS_ENCRYPT_STAGING": site.pebble.directory},
                           env={"SSL_CERT_FILE": str(site.pebble.ca_file)})
    assert result.status == 0, result.err
    check_chain(result.out, site.hosts, key(), site.pebble.root)
    assert site.file.read_text() == before != result.out


# --- renewal information --------------------------------------------------------------------------

@pytest.mark.parametrize("start, end, due", [
    pytest.param(10, 20, False, marks=pytest.mark.core), (-1, 3, None),
    pytest.param(-3, 1, True, marks=pytest.mark.core), (-9, -5, True), (1000, 2000, False),
    (-1, 2000, None)])
def test_window(start, end, due, site):
    """The moment is a point of the first half of the CA's window that the certificate decides.

    It is the same at each look, and in each version of the script; a window that is far ahead, or
    far too long, leaves the last tenth of the lifetime for renewing.
    """
    site.issue()
    window = (now() + start * DAY, now() + end * DAY)
    site.set_window(window)
    [leaf, *_] = load_chain(site.file.read_text())
    share = int(leaf.fingerprint(hashes.SHA256()).hex()[:8], 16) / 2 ** 32
    tenth = (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 10
    wanted = min(window[0] + share * (window[1] - window[0]) / 2, leaf.not_valid_after_utc - tenth)
    result = site.renew()
    assert abs(moment_in(result.err) - wanted) <= datetime.timedelta(seconds=2)
    assert result.status == (0 if wanted < now() else 3) and due in (None, not result.status)
    assert "W:" not in result.err


def test_a_tenth_is_left(site, key, tmp_path):
    """However far ahead the CA's window is."""
    site.file.write_text(made_up(site.hosts, key(), (-82, 8)))
    asked, told = identifiers_of(site, tmp_path, window=(now() + 100 * DAY, now() + 200 * DAY))
    assert asked == told != []


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dt%H:%M:%Sz",
                                  "%Y-%m-%dT%H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%S.123456789Z"])
def test_forms_of_time(form, site):
    """RFC 3339 allows fractions of a second and small letters."""
    site.issue()
    wanted = now() + 10 * DAY
    texts = [(wanted + datetime.timedelta(seconds=more)).strftime(form) for more in (0, 2)]
    site.set_window(json.dumps({"suggestedWindow": dict(zip(("start", "end"), texts))}))
    result = site.renew()
    assert result.status == 3 and "W:" not in result.err
    assert wanted <= moment_in(result.err) <= wanted + datetime.timedelta(seconds=1)


def by_lifetime(result, certificate, warned):
    """Asserts that a run was not due, by the rule by lifetime, with or without a warning."""
    assert result.status == 3, result.err
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    wanted = certificate.not_valid_after_utc - life / 3
    assert abs(moment_in(result.err) - wanted) <= datetime.timedelta(seconds=1)
    assert bool(re.search("^W: .*renewal", result.err, re.M)) == warned


@pytest.mark.parametrize("answer", [
    (20, 10), "<html>no JSON</html>", "[]", "null", "{}", '{"suggestedWindow": null}',
    '{"suggestedWindow": "now"}', '{"suggestedWindow": {"start": "2020-01-01T00:00:00Z"}}',
    '{"suggestedWindow": {"start": 1577836800, "end": 1577836801}}',
    '{"suggestedWindow": {"start": "2020-01-01", "end": "2020-01-02"}}',
    '{"suggestedWindow": {"start": "2020-13-01T00:00:00Z", "end": "2020-14-01T00:00:00Z"}}',
    '{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "soon"}}',
    '{"suggestedWindow": {"start": "2020-01-01T00:00:00+01:00", "end": "2020-01-02T00:00:00Z"}}',
    '{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00-08:00"}}',
    '{"suggestedWindow": {"start": "2020-01-01T00:00:00", "end": "2020-01-02T00:00:00"}}',
], ids=str)
def test_odd_information(answer, site):
    """Renewal information that makes no sense is as good as none, and is warned of."""
    site.issue()
    if isinstance(answer, tuple):
        answer = [now() + days * DAY for days in answer]
    site.set_window(answer)
    result = site.renew()
    by_lifetime(result, load_chain(site.file.read_text())[0], True)


def test_unknown_certificate(site, key):
    """A certificate that Pebble does not know (404) goes by its lifetime, with a warning."""
    old = made_up(site.hosts, key(), (-9, 81))
    site.file.write_text(old)
    by_lifetime(site.renew(), load_chain(old)[0], True)
    assert site.served == INFO


@pytest.mark.parametrize("script, warned", [
    ({"renewalInfo": problem("serverInternal", 500)}, True),
    ({"renewalInfo": replace(b"no JSON")}, True),
    ({"renewalInfo": problem("rateLimited", 429, {"Retry-After": "86400"})}, True),
    ({"directory": put("renewalInfo", MISSING)}, False)],
    ids=["500", "no JSON", "429", "none"])
def test_faults_of_information(script, warned, site, key, tmp_path):
    """A CA that has no renewal information, or cannot give it, leaves the rule by lifetime."""
    old = made_up(site.hosts, key(), (-9, 81))
    site.file.write_text(old)
    with ScriptedCA(tmp_path / "ca", script) as ca:
        by_lifetime(site.renew(ca=ca, scale=0.01), load_chain(old)[0], warned)
        assert set(ca.requests) <= {"directory", "renewalInfo"}


@pytest.mark.parametrize("authority", [
    None, (None, None, None), (b"", None, None),
    (None, [x509.DirectoryName(common_name("x"))], 5)],
    ids=["none", "empty", "of no bytes", "by name"])
def test_no_key_identifier(authority, site, key):
    """A certificate without an authority key identifier has no name in renewal information."""
    old = made_up(site.hosts, key(), (-9, 81), authority=authority)
    site.file.write_text(old)
    by_lifetime(site.renew(), load_chain(old)[0], False)
    assert site.served == INFO[:1]


@pytest.mark.core
def test_months_pass(site):
    """Pebble's own window lies a day around the last third: the clock alone makes it due."""
    old = site.issue()
    assert site.renew(clock="+58d").status == 3
    assert site.file.read_text() == old
    assert site.renew(clock="+61d").status == 0
    assert site.file.read_text() != old


# --- the rule by lifetime -------------------------------------------------------------------------

@pytest.mark.parametrize("days, age, due", [
    (90, 59.9, False), (90, 60.1, True), (45, 29.9, False), (45, 30.1, True),
    (6, 2.9, False), (6, 3.1, True), (10.1, 6.6, False), (9.9, 5.1, True)])
def test_lifetime(days, age, due, site, key):
    """A third of the lifetime is left, or half of less than ten days (Pebble knows it not)."""
    site.file.write_text(made_up(site.hosts, key(), (-age, days - age)))
    result = site.renew()
    assert result.status == (0 if due else 3), result.err


def test_far_future(site, key):
    """A certificate of a private CA may live longer than two digits of a year can tell."""
    site.file.write_text(made_up(site.hosts, key(), (-1, 36500)))
    assert site.renew().status == 3


# --- what the order says --------------------------------------------------------------------------

@pytest.mark.core
def test_replaces(site):
    """The order names the certificate it replaces, once; a second time Pebble wants none of it."""
    old = site.issue()
    past = (now() - 2 * DAY, now() - DAY)
    site.set_window(past)
    assert site.renew().status == 0
    assert site.served.count("POST /order-plz") == 1
    serial = "%x" % load_chain(old)[0].serial_number
    order = re.search(r"Issued certificate serial 0*%s for order (\S+)" % serial, site.pebble.log)
    assert "replacement of \"%s\"" % order.group(1) in site.pebble.log
    site.file.write_text(old)
    result = site.renew()
    assert result.status == 0, result.err
    assert site.served.count("POST /order-plz") == 2
    assert re.search("^W: .*alreadyReplaced", result.err, re.M)
    assert site.file.read_text() != old


def test_replaces_refused(site, key):
    """A certificate of another CA, or of another account, is replaced without saying so."""
    site.file.write_text(made_up(site.hosts, key(), (-81, 9)))
    result = site.renew()
    assert result.status == 0, result.err
    assert site.served.count("POST /order-plz") == 2 and "W: " in result.err
    site.set_window((now() - 2 * DAY, now() - DAY))
    result = site.renew("--account-key", key("p256", "another account"))
    assert result.status == 0, result.err
    assert site.served.count("POST /order-plz") == 2 and "W: " in result.err


@pytest.mark.parametrize("serial, authority, expected", [
    (0x87654321, "69885b6b87464041e1b37b847ba0ae2cde01c8d4",
     "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"),  # the example of RFC 9773
    (1, "00", "AA.AQ"), (0x7f, "00ff", "AP8.fw"), (0x80, "ff", "_w.AIA"),
    (2 ** 159 - 1, "01" * 20, None), (2 ** 158, "80" * 32, None), (0xffffffffffffffff, "ff", None)])
def test_identifier(serial, authority, expected, site, key, tmp_path):
    """The CA is asked for, and told of, the right certificate, whatever bytes its serial has."""
    site.file.write_text(made_up(site.hosts, key(), (-81, 9), serial,
                                 (bytes.fromhex(authority), None, None)))
    expected = expected or ari_id(load_chain(site.file.read_text())[0])
    asked, told = identifiers_of(site, tmp_path)
    assert asked == told == [expected]


def test_identifier_with_leading_zeros(site, key, tmp_path):
    """A serial number that an odd CA has padded with zero bytes is taken as it is."""
    old = x509.load_pem_x509_certificate(made_up(
        site.hosts, key(), (-81, 9), 0x12345678, (b"\1", None, None)).encode())
    der = old.public_bytes(DER)
    padded = der.replace(b"\x02\x04\x12\x34\x56\x78", b"\x02\x04\0\0\x56\x78", 1)
    assert padded != der
    site.file.write_bytes(block(padded))
    asked, told = identifiers_of(site, tmp_path)
    assert asked == told == ["AQ.AABWeA"]


def identifiers_of(site, folder, answer=None, window=None):
    """The identifiers in the requests of a renewal, of its information and of its orders.

    The information is that it is wanted now, unless another answer or window is given.
    """
    asked, told = [], []

    def information(request, reply):
        """Keep what is asked."""
        asked.append(request.id)
        if answer:
            answer(request, reply)

    def order(request, reply):
        """An order that may say what it replaces."""
        told.extend(filter(None, [request.payload.get("replaces")]))
    with ScriptedCA(folder / "ca", {"renewalInfo": information, "newOrder": order},
                    window=window or (now() - 2 * DAY, now() - DAY)) as ca:
        result = site.renew("--disable-check", "--acme-dir", ca.challenges, "--config-json", "{}",
                            ca=ca)
    assert result.status == 0, result.err
    return asked, told


# --- failures -------------------------------------------------------------------------------------

@pytest.mark.parametrize("resource", [
    "directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order", "finalize",
    "certificate", "another certificate"])
def test_failure_at_every_step(resource, site, key, tmp_path):
    """Wherever a renewal fails, every output stays as it was, byte for byte."""
    others = [tmp_path / "cert.pem", tmp_path / "chain.pem"]
    old = made_up(site.hosts, key(), (-81, 9))
    for path in (*others, site.file):
        path.write_text(old)
    fault = problem("unauthorized")
    if resource == "another certificate":
        issuer = Issuer()
        leaf = issuer.leaf(["other.example"], load_key(key()).public_key())
        resource, fault = "certificate", replace(pem(leaf, issuer.intermediate))
    with ScriptedCA(tmp_path / "ca", {resource: fault}) as ca:
        before = sorted(tmp_path.iterdir())
        result = site.renew("--cert-file", others[0], "--chain-file", others[1], "--disable-check",
                            "--acme-dir", ca.challenges, "--config-json", "{}", ca=ca, scale=0.01)
        assert not list(ca.challenges.iterdir())
    assert result.status == 1 and "E: " in result.err
    assert [path.read_text() for path in (*others, site.file)] == [old] * 3
    assert sorted(tmp_path.iterdir()) == before
