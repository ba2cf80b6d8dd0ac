"""The fixtures, and a map of this folder.

What the tests stand on: support.py runs letsacme.py, servers.py starts Pebble and nginx, pki.py
makes keys and certificates, scripted_ca.py is a CA that breaks as faults.py tells it to, trials.py
has letsacme.py run against that and judges it.
The tests, by what they are about:
  in this process, or nearly        test_parsing, test_fuzz, test_usage, test_words, test_budget
  real CAs and web servers          test_pebble, test_other_cas, test_readme
  the scripted CA                   test_network, test_protocol, test_ways, test_lies, test_renewal
  this machine                      test_files, test_outputs, test_openssl, test_site, test_crashes
Run by hand: mutants.py (do the tests notice?), bench.py (how fast is it?), demo.sh.
"""
import collections
import contextlib
import json
import os
import re
import signal
import tempfile
from pathlib import Path

import pytest
import servers
import support
from pki import check_chain, write_csr, write_key
from trials import site, trial  # noqa: F401


def pytest_configure():
    """Gets ready, and ends at once where no Python to be tested is on this machine."""
    # A background job or nohup ignores signals, and the script would rightly go on doing that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # Files in memory, if that has a gigabyte to spare and may hold programs, are ten times as fast.
    with contextlib.suppress(OSError):
        state = os.statvfs("/dev/shm")
        if state.f_bavail * state.f_frsize > 1e9 and not state.f_flag & os.ST_NOEXEC:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")
    if not support.interpreters():
        raise pytest.UsageError("not on this machine: " + " ".join(support.WANTED))


def pytest_generate_tests(metafunc):
    """Makes each test for every Python."""
    pythons = support.interpreters()
    if len(pythons) > 1:
        metafunc.parametrize("python", pythons, ids=[each.word for each in pythons],
                             indirect=True, scope="session")


# These files and tests run in pytest's own Python, or look at what is the same under every Python:
# a document, or the ways of a CA.
ONCE = {"test_parsing", "test_fuzz", "test_budget", "test_readme", "test_words", "test_other_cas",
        "test_manners_of_the_ca"}


def pytest_collection_modifyitems(config, items):
    """Leaves only the core tests to the Pythons between the first and the last."""
    first, last = support.interpreters()[0], support.interpreters()[-1]
    chosen, others = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        python = params.get("python", first)
        item.user_properties.append(("python", python.word))
        once = ONCE & {item.module.__name__, item.originalname} and python is not last
        fits = (python in (first, last) and not once) or item.get_closest_marker("core")
        (chosen if fits else others).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session", autouse=True)
def python(request):
    """The Python that letsacme.py runs under."""
    support.current = getattr(request, "param", None)


def pytest_terminal_summary(terminalreporter):
    """Says how each Python did, in the file that run.sh closes with."""
    pythons = {each.word: each for each in support.interpreters()}
    counts = collections.Counter(
        (dict(report.user_properties).get("python"), kind)
        for kind in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(kind, ()) if hasattr(report, "user_properties"))
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    with open(not is_worker and os.environ.get("LETSACME_SUMMARY") or os.devnull, "a") as summary:
        for word in support.WANTED:
            said = word + ": not on this machine"
            if word in pythons:
                support.current = pythons[word]
                said = "%s, %s: %s" % (pythons[word].name, support.openssl_version(), ", ".join(
                    "%d %s" % (count, kind) for (each, kind), count in counts.items()
                    if each == word) or "no tests")
            print(said, file=summary)


@pytest.fixture
def letsacme(tmp_path):
    """letsacme(*args, ca=pebble, ...) runs the script; see support.Letsacme for all options."""
    return support.Letsacme(tmp_path)


@pytest.fixture
def names(letsacme):
    """names(3, "alias") are fresh host names that nginx serves and the script can look up."""
    def make(count=1, kind="site"):
        return [letsacme.add_host(support.fresh_name(kind)) for _ in range(count)]
    return make


@pytest.fixture(scope="session")
def nginx():
    """The nginx of this worker; see servers.Nginx for the kinds of sites it has."""
    # Not in pytest's own folder, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="letsacme-nginx-") as folder:
        server = servers.Nginx(Path(folder))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def pebbles(nginx, tmp_path_factory):
    """pebbles(PEBBLE_CHAIN_LENGTH=3, ...) is a Pebble, the same for the same options."""
    def start(**options):
        return servers.Pebble(tmp_path_factory.mktemp("pebble"),
                              **{"http_port": nginx.port, **options})
    with servers.kept(start) as start_once:
        yield start_once


@pytest.fixture
def pebble(pebbles):
    """The usual Pebble: it rejects some nonces, reuses no authorization and validates at once."""
    return pebbles()


@pytest.fixture(scope="session")
def namespaces(tmp_path_factory):
    """namespaces({"127.0.0.1": names}) have these hosts; see servers.Namespaces."""
    def make(hosts):
        made = servers.Namespaces(tmp_path_factory.mktemp("namespaces"), hosts)
        stack.callback(made.stop)
        return made
    with contextlib.ExitStack() as stack:
        yield make


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    """key("p256", "account") is the path of a private key, the same for the same arguments."""
    folder = tmp_path_factory.mktemp("keys")

    def make(kind="p256", label="domain"):
        path = folder / ("%s-%s.key" % (label, kind))
        return path if path.exists() else write_key(path, kind)
    return make


@pytest.fixture
def account(tmp_path):
    """The path of a new account key, which no CA has seen."""
    return write_key(tmp_path / "account.key", "p256")


@pytest.fixture
def csr(tmp_path, key):
    """csr(names, key=..., cn=..., ...) is the path of a CSR; see pki.write_csr."""
    usual = key()

    def make(names=(), key=usual, **options):
        path = tmp_path / support.fresh_name("csr")
        return write_csr(path, names, key, **options)
    return make


@pytest.fixture
def config(nginx, tmp_path):
    """config(names, **more) is the path of a config JSON with the document root of each name."""
    def make(names, **more):
        path = tmp_path / (support.fresh_name("config") + ".json")
        roots = {name: {"DocumentRoot": str(nginx.root(name))} for name in names}
        path.write_text(json.dumps({**roots, **more}))
        return path
    return make


@pytest.fixture
def basics(account, csr, config):
    """basics(names) are the arguments of a plain run: a new account key, a CSR, a config JSON."""
    def make(names, **options):
        return ["--account-key", account, "--csr", csr(names, **options),
                "--config-json", config(names)]
    return make


@pytest.fixture
def run_inside(letsacme, account):
    """run_inside(ca, csr, ...) asks a CA in namespaces of its own for a certificate."""
    def run(ca, csr, *args, account=account, **options):
        before = set(ca.challenges.iterdir())
        result = letsacme("--csr", csr, "--account-key", account, "--acme-dir", ca.challenges,
                          "--ca", ca.directory, *args, wrapper=ca.inside, **options,
                          env={"SSL_CERT_FILE": str(ca.ca_file), "NSS_WRAPPER_HOSTS": None})
        assert set(ca.challenges.iterdir()) == before
        return result
    return run


@pytest.fixture
def renews(run_inside, csr, key, tmp_path):
    """renews(ca, name, early, late, ...): it renews a certificate at a late clock, not before."""
    def check(ca, name, early, late, *args):
        output, accounts = tmp_path / "fullchain.pem", set()
        for clock, status in (None, 0), (early, 3), (late, 0):
            result = run_inside(ca, csr([name]), "--renew", "--fullchain-file", output, *args,
                                clock=clock)
            assert result.status == status, result.err
            check_chain(output.read_text(), [name], key(), ca.ca_file)
            accounts.update(re.findall(r"https://\S+/acc\w*t/\w+", result.err))
        assert len(accounts) == 1
    return check
