"""The main job, end to end: Pebble issues certificates, nginx serves the challenge files."""
import datetime
import json
import re
import shutil
import subprocess
from email.utils import parsedate_to_datetime

import pytest
import support
from cryptography import x509


def shell(line):
    """A wrapper that has a shell run this line, in which "$@" is letsacme.py and the CA to use."""
    return ["sh", "-c", line, "sh"]


def no_challenges_left(nginx, hosts):
    """Are the challenge files of all hosts gone?"""
    return not any(path.is_file() for host in hosts for path in nginx.root(host).rglob("*"))


# --- the command lines of the original, and those of acme-tiny ------------------------------------

@pytest.fixture
def example(tmp_path, nginx, names, account, csr, config):
    """Lays out account.key, domain.csr and config.json as the examples have them; gives names."""
    def make(kind="site"):
        """Three names of one kind of site."""
        hosts = names(3, kind)
        shutil.copy(csr(hosts), tmp_path / "domain.csr")
        shutil.copy(config(hosts), tmp_path / "config.json")
        return hosts
    return make


def check_file(path, part, hosts, key, pebble):
    """Checks that a file holds the certificate, the chain, or both."""
    chain = pebble.management("/intermediates/0").decode()
    text = path.read_text()
    assert len(support.load_chain(text)) == {"cert": 1, "chain": 1, "both": 2}[part]
    if part == "chain":
        assert support.load_chain(text) == support.load_chain(chain)
    else:
        support.check_chain(text + chain * (part == "cert"), hosts, key, pebble.root)


KEY_AND_CSR = '"$@" --account-key ./account.key --csr ./domain.csr '
EXAMPLES = {
    "certificate": (
        '"$@" --no-chain --account-key ./account.key --csr ./domain.csr '
        '--config-json ./config.json > ./signed.crt', {"signed.crt": "cert"}),
    "literal JSON": (
        '"$@" --no-chain --account-key ./account.key --csr ./domain.csr '
        "--config-json '{json}' > ./signed.crt", {"signed.crt": "cert"}),
    "chain": (KEY_AND_CSR + "--no-cert --config-json config.json > chain.crt",
              {"chain.crt": "chain"}),
    "three files": pytest.param(
        KEY_AND_CSR + "--config-json ./config.json "
        "--cert-file ./signed.cert --chain-file ./chain.crt > ./fullchain.crt",
        {"signed.cert": "cert", "chain.crt": "chain", "fullchain.crt": "both"},
        marks=pytest.mark.core),
    "cron job": (
        KEY_AND_CSR + "--config-json ./config.json --cert-file signed.crt --chain-file chain.crt "
        "> fullchain.crt 2>> letsacme.log && cp fullchain.crt restarted",
        {"signed.crt": "cert", "chain.crt": "chain", "restarted": "both"}),
    "cron job with retries": (
        "while true; do if " + KEY_AND_CSR + "--config-json ./config.json --cert-file signed1.crt "
        "> fullchain1.crt 2>> letsacme.log; then cp fullchain1.crt restarted; break; "
        "else exit 1; fi; done",
        {"signed1.crt": "cert", "fullchain1.crt": "both", "restarted": "both"}),
    "nothing printed": (
        KEY_AND_CSR + "--config-json ./config.json --no-cert --no-chain --cert-file signed.crt",
        {"signed.crt": "cert"}),
}


@pytest.mark.parametrize("line, files", EXAMPLES.values(), ids=EXAMPLES)
def test_original_command_lines(line, files, example, letsacme, pebble, nginx, key):
    """What the original's README shows works as it is."""
    hosts = example()
    line = line.replace("{json}", (letsacme.folder / "config.json").read_text())
    result = letsacme(wrapper=shell(line), ca=pebble)
    assert (result.status, result.out) == (0, ""), result.err
    for name, part in files.items():
        check_file(letsacme.folder / name, part, hosts, key(), pebble)
    assert no_challenges_left(nginx, hosts)


@pytest.mark.parametrize("kind", ["alias", "redirect"])
def test_shared_challenge_directory(kind, example, letsacme, pebble, nginx, key):
    """--acme-dir serves all names: behind an alias, or where another host's redirect ends."""
    hosts = example(kind)
    folder = {"alias": nginx.challenges, "redirect": nginx.landing}[kind]
    line = KEY_AND_CSR + "--acme-dir %s/ --cert-file ./signed.crt --chain-file ./chain.crt " \
        "> ./fullchain.crt" % folder
    result = letsacme(wrapper=shell(line), ca=pebble)
    assert result.status == 0, result.err
    for name, part in {"signed.crt": "cert", "chain.crt": "chain", "fullchain.crt": "both"}.items():
        check_file(letsacme.folder / name, part, hosts, key(), pebble)
    assert not list(folder.iterdir())


def test_redirect_to_expired_https(letsacme, basics, pebble, names, nginx, key):
    """A site that sends everything to https proves its names though its certificate expired."""
    hosts = names(2, "https")
    result = letsacme(*basics(hosts), ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, hosts, key(), pebble.root)


@pytest.mark.core
def test_acme_tiny_command_line(example, letsacme, pebble, nginx, key):
    """An acme-tiny command line works with only the file name changed."""
    hosts = example("alias")
    line = KEY_AND_CSR + "--acme-dir %s --directory-url %s --check-port %d --quiet " \
        "--contact mailto:one@mail.example mailto:two@mail.example > signed_chain.crt" \
        % (nginx.challenges, pebble.directory, nginx.port)
    result = letsacme(wrapper=shell(line), env={"SSL_CERT_FILE": str(pebble.ca_file)})
    assert (result.status, result.err) == (0, "")
    check_file(letsacme.folder / "signed_chain.crt", "both", hosts, key(), pebble)


def test_disable_check(letsacme, basics, pebble, nginx, key):
    """Names that this machine cannot look up are proved with --disable-check, and only so."""
    hosts = [support.fresh_name("site")]
    arguments = basics(hosts)
    result = letsacme(*arguments, ca=pebble)
    assert result.status == 1
    assert "couldn't download http://%s" % hosts[0] in result.err
    result = letsacme(*arguments, "--disable-check", ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, hosts, key(), pebble.root)


# --- what it says ---------------------------------------------------------------------------------

def test_log(letsacme, basics, pebble, names):
    """The log tells the stages, the account's URL and what was agreed to; with --quiet, nothing."""
    hosts = names(2)
    arguments = basics(hosts)
    result = letsacme(*arguments, ca=pebble)
    first, *stages = result.err.splitlines()
    date = re.match(r"letsacme \d+(?:\.\d+)+, (.*\d\d:\d\d:\d\d GMT): ", first).group(1)
    age = datetime.datetime.now(datetime.timezone.utc) - parsedate_to_datetime(date)
    assert datetime.timedelta(0) <= age < datetime.timedelta(hours=1)
    assert all(host in first for host in hosts)
    told = iter(stages)
    for stage in ("Parsing account key...", "Registering account...", "Signing certificate..."):
        assert stage in told, "%s is missing, or in the wrong place: %s" % (stage, result.err)
    for line in ["Verifying %s..." % host for host in hosts] + ["  Certificate signed!"]:
        assert line in stages
    for url in (pebble.directory.replace("/dir", "/my-account/"), "data:text/plain,"):
        assert url in result.err
    result = letsacme(*arguments, "--quiet", ca=pebble)
    assert (result.status, result.err) == (0, "")


@pytest.mark.core
def test_help_and_version(letsacme):
    """-h tells every option, and --version the version, which Python 2.7 prints to stderr."""
    result = letsacme("-h")
    assert (result.status, result.err) == (0, "")
    for option in ("account-key", "csr", "config-json", "acme-dir", "cert-file", "chain-file",
                   "quiet", "ca", "no-chain", "no-cert", "force", "test", "version",
                   "directory-url", "contact", "disable-check", "check-port",
                   "fullchain-file", "renew", "profile", "eab-kid", "eab-hmac-key"):
        assert re.search(r"--%s\b" % option, result.out), option
    result = letsacme("--version")
    told = [result.out, result.err]
    assert result.status == 0 and "" in told
    assert re.fullmatch(r"(letsacme )?\d+(\.\d+)+\n", "".join(told))


@pytest.mark.parametrize("options, host", [
    ([], "acme-v02.api.letsencrypt.org"), (["--test"], "acme-staging-v02.api.letsencrypt.org")])
def test_lets_encrypt_is_the_default(options, host, letsacme, basics, names):
    """Without --ca it turns to Let's Encrypt, with --test to its staging CA (neither is here)."""
    letsacme.add_host(host)
    result = letsacme(*basics(names()), *options, scale=0.01)
    assert result.status == 1
    assert re.search(r"^E: .*https://%s/directory\b" % re.escape(host), result.err, re.M)
    assert ("(test mode)" in result.err) == bool(options)


def test_dry_run(letsacme, basics, pebble, names, key):
    """With --test the certificate is printed, and all outputs stay as they are."""
    hosts = names(2)
    for name in ("cert.pem", "fullchain.pem"):
        (letsacme.folder / name).write_text("live")
    result = letsacme(
        *basics(hosts), "--test", "--renew", "--cert-file", "cert.pem", "--chain-file", "new.pem",
        "--fullchain-file", "fullchain.pem", "--check-port", pebble.http_port,
        constants={"LETS_ENCRYPT_STAGING": pebble.directory},
        env={"SSL_CERT_FILE": str(pebble.ca_file)})
    assert result.status == 0, result.err
    support.check_chain(result.out, hosts, key(), pebble.root)
    assert re.search(r"^Signing certificate.*\(test mode\)", result.err, re.M)
    assert re.search("^W: .*test mode", result.err, re.M)
    assert (letsacme.folder / "cert.pem").read_text() == "live"
    assert (letsacme.folder / "fullchain.pem").read_text() == "live"
    assert not (letsacme.folder / "new.pem").exists()


def test_no_dry_run_beside_ca(letsacme, basics, pebble, names, key):
    """--test has no effect beside --ca."""
    hosts = names()
    result = letsacme(*basics(hosts), "--test", "--fullchain-file", "new.pem", ca=pebble)
    assert (result.status, result.out) == (0, ""), result.err
    assert "test mode" not in result.err
    check_file(letsacme.folder / "new.pem", "both", hosts, key(), pebble)


# --- keys and requests ----------------------------------------------------------------------------

EC = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:"


@pytest.mark.parametrize("account_key, domain_key", [
    ("openssl genrsa 4096 > account.key", "p256"),
    ("openssl genrsa 3072 > account.key", "p384"),
    ("openssl genrsa 2048 | openssl pkey -traditional > account.key", "rsa4096"),
    pytest.param("openssl ecparam -genkey -name prime256v1 > account.key", "rsa2048",
                 marks=pytest.mark.core),
    (EC + "P-256 -out account.key", "rsa3072"),
    pytest.param(EC + "P-384 -out account.key", "p384", marks=pytest.mark.core),
])
def test_keys(account_key, domain_key, letsacme, pebble, names, csr, config, key):
    """Account and domain keys of every kind, in the forms that openssl gives them."""
    subprocess.run(["sh", "-c", account_key], cwd=letsacme.folder, check=True, capture_output=True)
    hosts = names(2)
    request = csr(hosts, key=key(domain_key))
    result = letsacme("--account-key", "account.key", "--csr", request, "--config-json",
                      config(hosts), ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, hosts, key(domain_key), pebble.root)


def test_original_csr_command(example, letsacme, pebble):
    """The original's long openssl command for several names makes a CSR that is good."""
    hosts = example()
    subject = "/C=US/ST=CA/O=MY Org/CN=%s" % hosts[0]
    line = 'openssl genrsa 2048 > domain.key && ' \
        'openssl req -new -sha256 -key domain.key -subj "%s" -reqexts SAN -config <(cat ' \
        '/etc/ssl/openssl.cnf <(printf "[SAN]\nsubjectAltName=%s")) -out domain.csr' \
        % (subject, ",".join("DNS:" + host for host in hosts))
    subprocess.run(["bash", "-c", line], cwd=letsacme.folder, check=True, capture_output=True)
    line = KEY_AND_CSR + "--config-json ./config.json > fullchain.crt"
    result = letsacme(wrapper=shell(line), ca=pebble)
    assert result.status == 0, result.err
    check_file(letsacme.folder / "fullchain.crt", "both", hosts,
               letsacme.folder / "domain.key", pebble)


USAGE = x509.KeyUsage(True, False, True, False, False, False, False, False, False)


@pytest.mark.parametrize("options", [
    {"cn": "{0}"}, {"cn": "{1}", "critical": True}, {"cn": "My Site"}, {"cn": "www.{0} shop"},
    {"extensions": [(USAGE, True), (x509.OCSPNoCheck(), False)]},
], ids=["common name too", "critical", "common name is no name", "nor this one", "extensions"])
def test_csrs(options, letsacme, basics, pebble, names, key):
    """The names come from the SubjectAltName and, if it is one, the common name."""
    hosts = names(2)
    if "cn" in options:
        options = dict(options, cn=options["cn"].format(*hosts))
    result = letsacme(*basics(hosts, **options), ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, hosts, key(), pebble.root)


def test_upper_case(letsacme, basics, pebble, names, csr, nginx, key):
    """Names are compared without case, in the CSR and in the configuration."""
    one, two = names(2)
    roots = {one.upper(): {"DocumentRoot": str(nginx.root(one))},
             two: {"DocumentRoot": str(nginx.root(two))}}
    result = letsacme(*basics([one, two]), "--csr", csr([one, two.upper()], cn=one.upper()),
                      "--config-json", json.dumps(roots), ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, [one, two.upper()], key(), pebble.root)


def test_common_name_only(letsacme, basics, pebble, names, csr):
    """Today's CAs want a SubjectAltName; what Pebble says of a CSR without one is shown."""
    [host] = names()
    arguments = basics([host])
    arguments[3] = csr(cn=host)
    result = letsacme(*arguments, ca=pebble)
    assert result.status == 1
    assert "Verifying %s..." % host in result.err
    assert re.search("^E: .*Order includes different number of", result.err, re.M)


def test_hundred_names(letsacme, basics, pebble, csr, config, nginx, key):
    """As many names as Let's Encrypt allows, each with a document root of its own."""
    hosts = [support.fresh_name("site") for _ in range(99)]
    for host in hosts:
        letsacme.add_host(host)
    address = "127.0.0.1"  # nss_wrapper's table of names has no room for a hundredth
    result = letsacme(*basics(hosts), "--csr", csr(hosts, ips=[address]),
                      "--config-json", config([*hosts, address]), ca=pebble)
    assert result.status == 0, result.err
    support.check_chain(result.out, [*hosts, address], key(), pebble.root)
    assert no_challenges_left(nginx, [*hosts, address])


# --- the CA's ways --------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    pytest.param({"PEBBLE_WFE_NONCEREJECT": 50}, marks=pytest.mark.core),
    {"strict": True},
    {"PEBBLE_AUTHZREUSE": 100},
    {"PEBBLE_VA_NOSLEEP": 0, "PEBBLE_VA_SLEEPTIME": 2, "retryAfter": {"authz": 1, "order": 1}},
    {"PEBBLE_CHAIN_LENGTH": 4},
], ids=lambda options: next(iter(options)))
def test_manners_of_the_ca(options, letsacme, basics, pebbles, names, nginx, key):
    """First with a new account and then with the known one, whatever the CA's ways."""
    pebble = pebbles(**options)
    hosts = names(3)
    arguments = basics(hosts)
    accounts = []
    for _ in range(2):
        served = len(pebble.requests)
        result = letsacme(*arguments, ca=pebble)
        assert result.status == 0, result.err
        chain = support.check_chain(result.out, hosts, key(), pebble.root)
        assert len(chain) == 1 + options.get("PEBBLE_CHAIN_LENGTH", 1)
        accounts += re.findall(r"https://[\w:]+/my-account/\w+", result.err)
        assert no_challenges_left(nginx, hosts)
    assert len(accounts) == 2 and accounts[0] == accounts[1]
    proofs = [request for request in pebble.requests[served:] if "/chalZ/" in request]
    assert bool(proofs) == (options.get("PEBBLE_AUTHZREUSE") != 100)


# --- challenge files ------------------------------------------------------------------------------

def test_umask_and_other_files(letsacme, basics, pebble, names, nginx):
    """A tight umask does not hide the challenge files, and what lay beside them stays."""
    [host] = names()
    folder = nginx.root(host) / ".well-known"
    folder.mkdir()
    (folder / "security.txt").write_text("mine")
    result = letsacme(*basics([host]), ca=pebble, umask=0o077)
    assert result.status == 0, result.err
    assert (folder / "acme-challenge").stat().st_mode & 0o777 == 0o755
    assert not list((folder / "acme-challenge").iterdir())
    assert (folder / "security.txt").read_text() == "mine"


def test_only_challenge_directory_writable(letsacme, basics, pebble, names, nginx):
    """A user who may write the challenge directory needs no right to the document root."""
    hosts = names(2)
    for host in hosts:
        (nginx.root(host) / ".well-known/acme-challenge").mkdir(parents=True)
        (nginx.root(host) / ".well-known").chmod(0o555)
        nginx.root(host).chmod(0o555)
    result = letsacme(*basics(hosts), ca=pebble, wrapper=support.UNPRIVILEGED)
    assert result.status == 0, result.err
    assert no_challenges_left(nginx, hosts)


# --- what goes wrong ------------------------------------------------------------------------------

@pytest.mark.parametrize("options, words", [
    ([], "account-key"),
    (["--account-key", "account.key"], "csr"),
    (["--bogus"], "--bogus"),
    (["leftover"], "unknown"),
    (["--csr"], "--csr"),
], ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "")
def test_wrong_usage(options, words, letsacme):
    """A wrong command line is told in a line, and the exit status is 2."""
    result = letsacme(*options)
    assert result.status == 2
    assert re.fullmatch("E: .*%s.*\n" % re.escape(words), result.err)


def refusal(letsacme, pebble, *arguments):
    """The error of a run that must end with status 1, without a word to the CA."""
    served = len(pebble.requests)
    result = letsacme(*arguments, ca=pebble)
    assert result.status == 1, result.err
    assert pebble.requests[served:] == []
    errors = [line for line in result.err.splitlines() if line.startswith("E: ")]
    assert len(errors) == 1, result.err
    return errors[0]


def test_csr_of_the_account_key(letsacme, basics, pebble, names, account):
    """A CSR signed with the account key is refused."""
    assert "account" in refusal(letsacme, pebble, *basics(names(), key=account))


def test_ca_without_tls(letsacme, basics, pebble, names):
    """A CA must have an https URL."""
    result = letsacme(*basics(names()), "--ca", pebble.directory.replace("https:", "http:"))
    assert result.status in (1, 2) and re.search("^E: .*https", result.err, re.M)


def test_name_without_directory(letsacme, basics, pebble, names, csr):
    """A name that the configuration lacks is named before anything is done for the others."""
    hosts = names(3)
    error = refusal(letsacme, pebble, *basics(hosts[:2]), "--csr", csr(hosts))
    assert hosts[2] in error and hosts[0] not in error


@pytest.mark.core
def test_self_check(letsacme, basics, pebble, names, nginx, tmp_path):
    """Challenge files that the web server does not show are noticed before the CA looks."""
    host, lost = names(2)
    arguments = basics([host, lost])
    elsewhere = {host: {"DocumentRoot": str(nginx.root(host))}, lost: {"AcmeDir": str(tmp_path)}}
    before = set(tmp_path.iterdir())
    served = len(pebble.requests)
    result = letsacme(*arguments, "--config-json", json.dumps(elsewhere), ca=pebble)
    assert result.status == 1
    assert re.search(r"^E: .*Wrote file to %s/[\w-]+, but couldn't download "
                     r"http://%s:\d+/\.well-known/acme-challenge/[\w-]+\b.*404"
                     % (re.escape(str(tmp_path)), re.escape(lost)), result.err, re.M)
    assert not [request for request in pebble.requests[served:] if "chalZ" in request]
    assert set(tmp_path.iterdir()) == before and no_challenges_left(nginx, [host])


@pytest.mark.core
def test_failed_validation(letsacme, basics, pebble, names, nginx, tmp_path):
    """Each name that the CA could not verify is told with the CA's reason."""
    host, *lost = names(3)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = {name: {"AcmeDir": str(tmp_path / "elsewhere")} for name in lost}
    elsewhere[host] = {"DocumentRoot": str(nginx.root(host))}
    result = letsacme(*basics([host, *lost]), "--config-json", json.dumps(elsewhere),
                      "--disable-check", ca=pebble)
    assert result.status == 1
    for name in lost:
        assert re.search("^E: .*%s: .*404" % re.escape(name), result.err, re.M)
    assert not re.search("^E: .*%s" % re.escape(host), result.err, re.M)
    assert not list((tmp_path / "elsewhere").iterdir()) and no_challenges_left(nginx, [host])
