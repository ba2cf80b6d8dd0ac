"""The main job, end to end: Pebble issues certificates, nginx serves the challenge files."""
import base64
import datetime
import json
import os
import re
import shutil
from email.utils import parsedate_to_datetime

import pki
import pytest
from pki import check_chain, load_chain
from servers import has_ipv6
from support import fake_openssl


def no_challenges_left(nginx, hosts):
    """Are the challenge files of all hosts gone?"""
    return not any(path.is_file() for host in hosts for path in nginx.root(host).rglob("*"))


@pytest.fixture
def issue(letsacme, basics, nginx, key):
    """issue(ca, names, ...) gets a certificate; it gives that with its chain, and the log."""
    def start(ca, hosts, *args, **options):
        result = letsacme(*basics(hosts), *args, ca=ca, **options)
        assert result.status == 0, result.err
        assert no_challenges_left(nginx, hosts)
        return check_chain(result.out, hosts, key(), ca.root), result.err
    return start


RUN = '"$@" --account-key ./account.key --csr ./domain.csr '
CONFIG = RUN + "--config-json ./config.json "
ALL = CONFIG + "> both.crt"
BOTH = {"both.crt": "both"}
# The kind of the site, a command line, and the parts that files hold then.
EXAMPLES = {
    "literal JSON": ("site", RUN + "--no-chain --config-json '{json}' > ./signed.crt",
                     {"signed.crt": "cert"}),
    "three files": pytest.param(
        "site", CONFIG + "--cert-file ./signed.cert --chain-file ./chain.crt > ./fullchain.crt",
        {"signed.cert": "cert", "chain.crt": "chain", "fullchain.crt": "both"},
        marks=pytest.mark.core),
    "nothing printed": ("site", CONFIG + "--no-cert --no-chain --cert-file signed.crt",
                        {"signed.crt": "cert"}),
    "CSR": ("site", 'openssl genrsa 2048 | openssl pkey -traditional > account.key && '
            'openssl req -new -sha256 -key domain.key -subj "/C=US/ST=CA/O=MY Org/CN={host}" '
            '-reqexts SAN -config <(cat /etc/ssl/openssl.cnf <(printf '
            '"[SAN]\nsubjectAltName={entries}")) -out domain.csr && ' + ALL, BOTH),
    "P-256": ("site", "openssl ecparam -genkey -name prime256v1 -out account.key && " + ALL, BOTH),
    "P-384": ("site", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 "
              "-out account.key && " + ALL, BOTH),
    "to https": ("https", ALL, BOTH),
    "acme-tiny": (
        "alias", RUN + "--acme-dir {challenges}/ --directory-url {ca} --check-port {port} --quiet "
        "--contact mailto:one@mail.example two@mail.example > both.crt", BOTH),
}


@pytest.mark.parametrize("kind, line, files", EXAMPLES.values(), ids=EXAMPLES)
def test_command_lines(kind, line, files, letsacme, names, csr, config, key, pebble, nginx,
                       account):
    """What the original's README shows works as it is, and a command line of acme-tiny's; so do
    account keys of each kind, as openssl makes them."""
    hosts, folder = names(3, kind), letsacme.folder
    for source, name in ((csr(hosts), "domain.csr"), (config(hosts), "config.json"),
                         (key(), "domain.key")):
        shutil.copy(source, folder / name)
    for mark, value in (("json", (folder / "config.json").read_text()), ("host", hosts[0]),
                        ("entries", ",".join("DNS:" + host for host in hosts)),
                        ("challenges", nginx.challenges), ("ca", pebble.directory),
                        ("port", nginx.port)):
        line = line.replace("{%s}" % mark, str(value))
    where = {"env": {"SSL_CERT_FILE": str(pebble.ca_file)}}
    where = where if "--directory-url" in line else {"ca": pebble}
    result = letsacme(wrapper=["bash", "-ec", line, "bash"], **where)
    assert (result.status, result.out) == (0, ""), result.err
    assert "--quiet" not in line or not result.err
    chain = pebble.management("/intermediates/0").decode()
    for name, part in files.items():
        text = (folder / name).read_text()
        assert len(load_chain(text)) == {"cert": 1, "chain": 1, "both": 2}[part]
        if part == "chain":
            assert load_chain(text) == load_chain(chain)
        else:
            check_chain(text + chain * (part == "cert"), hosts, key(), pebble.root)
    assert no_challenges_left(nginx, hosts) and not list(nginx.challenges.iterdir())


def test_log(letsacme, basics, pebble, names):
    """The log tells the stages, the account's URL and what was agreed to."""
    hosts = names(2)
    result = letsacme(*basics(hosts), "--fullchain-file", "new.pem", ca=pebble)
    first, *stages = result.err.splitlines()
    date = re.match(r"letsacme \d+(?:\.\d+)+, (.*\d\d:\d\d:\d\d GMT): ", first).group(1)
    age = datetime.datetime.now(datetime.timezone.utc) - parsedate_to_datetime(date)
    assert datetime.timedelta(0) <= age < datetime.timedelta(hours=1)
    told = [line for line in stages if re.match("[PRVS].*[.]{3}$", line)]
    assert [told[0], told[1], {*told[2:4]}, told[4]] == [
        "Parsing account key...", "Registering account...",
        {"Verifying %s..." % host for host in hosts}, "Signing certificate..."]
    [leaf, _] = load_chain((letsacme.folder / "new.pem").read_text())
    for text in (*hosts, pebble.directory.replace("/dir", "/my-account/"), "data:text/plain,",
                 "  Certificate signed!", "new.pem",
                 leaf.not_valid_after_utc.strftime("%d %b %Y %H:%M:%S GMT")):
        assert text in result.err


def test_dry_run(letsacme, basics, pebble, names, key):
    """With --test the certificate is printed, even if none is due, and all outputs stay."""
    hosts = names(2)
    output = letsacme.folder / "fullchain.pem"
    before = pki.pem(pki.Issuer().root)
    output.write_bytes(before)
    result = letsacme(*basics(hosts), "--test", "--chain-file", "new.pem", "--fullchain-file",
                      output, "--renew", "--check-port", pebble.http_port,
                      constants={"LETS_ENCRYPT_STAGING": pebble.directory},
                      env={"SSL_CERT_FILE": str(pebble.ca_file)})
    assert result.status == 0, result.err
    check_chain(result.out, hosts, key(), pebble.root)
    assert re.match("letsacme .*(test mode)", result.err) and re.search("^W: ", result.err, re.M)
    assert output.read_bytes() == before and not (letsacme.folder / "new.pem").exists()


def test_hundred_names(letsacme, issue, pebble, names, csr, nginx):
    """As many names as Let's Encrypt allows, which are compared without case, and addresses: each
    has a document root of its own."""
    assert has_ipv6() or not os.environ.get("CI"), "this machine has no IPv6 loopback"
    one, two, *more = names(97)
    addresses = ["127.0.0.1"] + ["::1"] * has_ipv6()
    hosts = [one, two.upper(), "xn--bcher-kva." + one, *more, *addresses]
    letsacme.add_host(hosts[2])
    # Where nginx looks for what is asked of an address: an IPv6 address stands in brackets.
    roots = {name: {"DocumentRoot": str(nginx.root("[%s]" % name if ":" in name else name.lower()))}
             for name in (one.upper(), two, *hosts[2:])}
    seen = len((nginx.folder / "access.log").read_text())
    issue(pebble, hosts, "--csr", csr(hosts, cn=one.upper(), critical=True), "--config-json",
          json.dumps(roots))
    log = (nginx.folder / "access.log").read_text()[seen:]
    for ip in addresses:  # the script's own check and the CA's
        assert re.search("^%s .* 200 .*letsacme/" % ip, log, re.MULTILINE)
        assert re.search("^%s .* 200 .*[Pp]ebble" % ip, log, re.MULTILINE)


@pytest.mark.parametrize("options", [
    {"PEBBLE_WFE_NONCEREJECT": 50, "strict": True, "PEBBLE_CHAIN_LENGTH": 4,
     "PEBBLE_ALTERNATE_ROOTS": 2},
    {"PEBBLE_AUTHZREUSE": 100, "PEBBLE_VA_NOSLEEP": 0, "PEBBLE_VA_SLEEPTIME": 1,
     "retryAfter": {"authz": 1, "order": 1}}], ids=["odd", "slow"])
def test_manners_of_the_ca(options, issue, pebbles, names):
    """First with a new account and then with the known one, whatever the CA's ways."""
    pebble, hosts, accounts = pebbles(**options), names(3), []
    for _ in range(2):
        served = len(pebble.requests)
        chain, log = issue(pebble, hosts)
        assert len(chain) == 1 + options.get("PEBBLE_CHAIN_LENGTH", 1)
        accounts += re.findall(r"https://[\w:]+/my-account/\w+", log)
    assert len(accounts) == 2 and accounts[0] == accounts[1]
    proofs = [request for request in pebble.requests[served:] if "/chalZ/" in request]
    assert bool(proofs) == (options.get("PEBBLE_AUTHZREUSE") != 100)


def test_profile(issue, pebbles, names):
    """The certificate lives as long as the profile says."""
    long = {"description": "90 days", "validityPeriod": 7776000}  # of one of these, by default
    ca = pebbles(profiles={**{"long%d" % number: long for number in range(30)},
                           "shortlived": {"description": "six days", "validityPeriod": 518400}})
    (certificate, _), _ = issue(ca, names(), "--profile", "shortlived")
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert abs(lifetime.total_seconds() - 518400) < 60


SECRET = b"\xfb\xff" + bytes(range(32))  # which begins with "-_" in base64url
MAC_KEY = base64.urlsafe_b64encode(SECRET).decode().rstrip("=")
# Notes its own command line, and that of the process which has started it.
WITNESS = """{ tr '\\0' '\\n' < /proc/$PPID/cmdline; printf '%%s\\n' "$0" "$@"; } >> %s
exec $real "$@"
"""


def test_external_account(issue, pebbles, names, config, tmp_path):
    """The right pair makes an account; a second run finds that and does not use the pair again. A
    key in the config JSON is on no command line, neither the script's nor openssl's."""
    pebble = pebbles(externalAccountBindingRequired=True, keyAlgorithm="ecdsa",
                     externalAccountMACKeys={"kid-1": MAC_KEY}, PEBBLE_WFE_NONCEREJECT=0)
    hosts, accounts, commands = names(), [], tmp_path / "commands"
    file = config(hosts, EabKid="kid-1", EabHmacKey=MAC_KEY)
    # A key that starts with "-" needs the form with "=".
    for requests, given, env in (
            (2, ["--config-json", file], fake_openssl(tmp_path / "b", WITNESS % commands)),
            (1, ["--eab-kid", "kid-1", "--eab-hmac-key=" + MAC_KEY + "=="], {})):
        before = pebble.requests.count("POST /sign-me-up")
        _, log = issue(pebble, hosts, *given, env=env)
        accounts += re.findall("https://.*/my-account/[0-9a-f]+", log)
        assert pebble.requests.count("POST /sign-me-up") - before == requests
        assert MAC_KEY not in log
    assert len(accounts) == 2 and accounts[0] == accounts[1]
    seen = commands.read_text()
    assert "letsacme.py" in seen and "-sign" in seen
    for form in (MAC_KEY, SECRET.hex(), base64.b64encode(SECRET).decode().rstrip("=")):
        assert form not in seen
