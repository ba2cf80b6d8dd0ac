"""The fixtures: see support.py for what they hand out."""
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import support

STARTED = time.monotonic()


def pytest_configure(config):
    """Ends at once where the Python to be tested is not on this machine."""
    # A background job or nohup ignores signals, and the script would rightly go on doing that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if not support.interpreter():
        wanted = os.environ["LETSACME_PYTHON"]
        say(wanted + ": not on this machine, skipped")
        pytest.exit(wanted + " is not on this machine: skipped", 0)


def pytest_report_header():
    """Names what is tested."""
    return "letsacme.py under %s, %s" % (support.interpreter().name, support.openssl_version())


def pytest_terminal_summary(terminalreporter, config):
    """Writes a line for the closing summary of run.sh."""
    counts = {kind: len(terminalreporter.stats.get(kind, ()))
              for kind in ("passed", "failed", "error", "skipped")}
    say("%s, %s (%s): %s, %d s" % (
        support.interpreter().name, support.openssl_version(),
        config.option.markexpr or "all tests",
        ", ".join("%d %s" % (count, kind) for kind, count in counts.items() if count) or "no tests",
        time.monotonic() - STARTED))


def say(line):
    """Adds a line to the file that run.sh closes with."""
    if os.environ.get("LETSACME_SUMMARY") and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["LETSACME_SUMMARY"], "a") as summary:
            summary.write(line + "\n")


@pytest.fixture
def letsacme(tmp_path):
    """letsacme(*args, ca=pebble, ...) runs the script; see support.Letsacme for all options."""
    return support.Letsacme(tmp_path)


@pytest.fixture
def warnings_off(monkeypatch):
    """Python does not complain: an openssl that dies leaves it with pipes that nobody closes."""
    monkeypatch.setattr(support.Interpreter, "command", property(lambda self: [self.path]))


@pytest.fixture
def names(letsacme):
    """names(3, "alias") are fresh host names that nginx serves and the script can look up."""
    letsacme.add_host("landing.site.example")

    def make(count=1, kind="site", address="127.0.0.1"):
        """That many names of one of nginx's kinds of sites."""
        made = [support.fresh_name(kind) for _ in range(count)]
        for name in made:
            letsacme.add_host(name, address)
        return made
    return make


@pytest.fixture(scope="session")
def nginx():
    """The nginx of this worker; see support.Nginx for the kinds of sites it has."""
    # Not in pytest's own folder, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="letsacme-nginx-") as folder:
        server = support.Nginx(Path(folder))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def pebbles(nginx, tmp_path_factory):
    """pebbles(PEBBLE_CHAIN_LENGTH=3, ...) is a Pebble with these options, started on first use.

    Equal options get the same Pebble, unless label differs: for a test that wants its own.
    """
    running = {}

    def start(label="", **options):
        """A running Pebble with these options; see support.Pebble."""
        key = json.dumps([label, options], sort_keys=True)
        if key not in running:
            folder = Path(tmp_path_factory.mktemp("pebble"))
            running[key] = support.Pebble(folder, nginx.port, **options)
        return running[key]
    yield start
    for pebble in running.values():
        pebble.stop()


@pytest.fixture
def pebble(pebbles):
    """The usual Pebble: it rejects some nonces, reuses no authorization and validates at once."""
    return pebbles()


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    """key("p256", "account") is the path of a private key, the same for the same arguments."""
    folder = tmp_path_factory.mktemp("keys")

    def make(kind="p256", label="domain"):
        """A key of one of the kinds in support.KEYS; another label is another key."""
        path = folder / ("%s-%s.key" % (label, kind))
        return path if path.exists() else support.write_key(path, kind)
    return make


@pytest.fixture
def account(tmp_path):
    """The path of a new account key, which no CA has seen."""
    return support.write_key(tmp_path / "account.key", "p256")


@pytest.fixture
def csr(tmp_path, key):
    """csr(names, key=..., cn=..., ...) is the path of a CSR; see support.write_csr."""
    def make(names=(), key=key(), **options):
        """A CSR for names, by default with the usual domain key."""
        path = tmp_path / support.fresh_name("csr")
        return support.write_csr(path, names, key, **options)
    return make


@pytest.fixture
def config(nginx, tmp_path):
    """config(names, **more) is the path of a config JSON with the document root of each name."""
    def make(names, **more):
        """A config JSON; more are further keys."""
        path = tmp_path / (support.fresh_name("config") + ".json")
        roots = {name: {"DocumentRoot": str(nginx.root(name))} for name in names}
        path.write_text(json.dumps({**roots, **more}))
        return path
    return make


@pytest.fixture
def basics(account, csr, config):
    """basics(names) are the arguments of a plain run: a new account key, a CSR, a config JSON."""
    def make(names, **options):
        """The arguments for these names; the options are those of csr."""
        return ["--account-key", account, "--csr", csr(names, **options),
                "--config-json", config(names)]
    return make
