"""Random answers, certificates, requests and settings, in this process: none of them may surprise.

Only the outside of letsacme.py is replaced: the network leads straight to a scripted CA, openssl is
the cryptography library, time passes without waiting, signals and the end of the process are kept
from this one. The suite runs the same few cases every time; LETSACME_FUZZ=100000 runs that many
others of each kind.
"""
import atexit
import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from email.parser import BytesHeaderParser
from unittest import mock

import pytest
import scripted_ca
import support
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("LETSACME_FUZZ", "0"))
NAMES = ["www.site.example", "site.example"]


def fuzz(few, **strategies):
    """Run a test on so many cases, the same ones each time; or on many, if that was asked for."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture,
             HealthCheck.filter_too_much, HealthCheck.large_base_example]
    config = settings(max_examples=CASES or few, derandomize=not CASES, database=None,
                      deadline=None, suppress_health_check=quiet)
    return lambda test: pytest.mark.timeout(CASES or 300)(config(given(**strategies)(test)))


# ---- A world for main()

class Endless(BaseException):
    """A run that asks for ever."""


class Wire:
    """A socket that leads to a scripted CA without any network."""

    def __init__(self, world):
        self.world, self.sent = world, b""

    def sendall(self, data):
        """Collect a request."""
        self.sent += data

    def makefile(self, *_):
        """Answer it."""
        head, _, body = self.sent.partition(b"\r\n\r\n")
        self.sent = b""
        line, _, fields = head.partition(b"\r\n")
        method, path, _ = line.decode("latin-1").split(" ", 2)
        headers = BytesHeaderParser().parsebytes(fields)
        request = scripted_ca.Request(method, path, headers, body, 1)
        self.world.clock += 0.05
        if len(self.world.ca.requests) > 2000:
            raise Endless
        return io.BytesIO(self.world.ca.answer(request).render(head=method == "HEAD"))

    def close(self):
        """Nothing is open."""


class Openssl:
    """A subprocess that does what the openssl commands of letsacme.py do, with one key."""
    key, spoil = None, staticmethod(lambda data: data)

    def __init__(self, command, **_):
        self.command = [os.fsdecode(word) for word in command]
        self.returncode, self.stdin, self.stdout, self.stderr = None, *(io.BytesIO() for _ in "123")

    def communicate(self, data=None, **_):
        """Give the public key, or sign."""
        self.returncode = 0
        assert self.command[0] == "openssl" and self.command[1] in ("pkey", "dgst"), self.command
        if self.command[1] == "dgst":
            return self.spoil(self.key.sign(data, ec.ECDSA(hashes.SHA256()))), b""
        return self.spoil(support.public_der(self.key.public_key())), b""

    def poll(self):
        """Give its status, None if it has not ended."""
        return self.returncode

    def kill(self):
        """End it."""
        self.returncode = -signal.SIGKILL

    wait = poll


class World:
    """letsacme.py as a module, a scripted CA, and the folder in which main() is called."""

    def __init__(self, folder):
        self.folder, self.challenges = folder, folder / "challenges"
        self.ends, self.clock = [], 0
        self.challenges.mkdir()
        self.ca = scripted_ca.ScriptedCA(folder / "ca", challenges=self.challenges)
        spec = importlib.util.spec_from_file_location("letsacme", support.SCRIPT)
        self.module = importlib.util.module_from_spec(spec)
        with self.apart():
            spec.loader.exec_module(self.module)
        self.key = support.load_key(support.write_key(folder / "domain.key", "p256"))
        self.csr = support.write_csr(folder / "domain.csr", NAMES, folder / "domain.key")
        Openssl.key = scripted_ca.new_key()
        self.leaf = self.ca.issuer.leaf(NAMES, self.key.public_key(), days=(-90, 1))

    @contextlib.contextmanager
    def apart(self):
        """Let the module have no effect on this process, no network and no openssl."""
        def connect(connection):
            """Lead to the scripted CA."""
            connection.sock = Wire(self)

        def register(function, *args):
            """Keep it for the end of main()."""
            self.ends.append((function, args))

        def sleep(seconds):
            """Let time pass."""
            assert seconds >= 0
            self.clock += seconds

        def times():
            """The clock that nobody sets."""
            return os.times_result([0, 0, 0, 0, self.clock])

        def ignore(*_):
            """Do nothing."""
        with contextlib.ExitStack() as stack:
            for module, name, other in (
                    (http.client.HTTPSConnection, "connect", connect), (signal, "signal", ignore),
                    (subprocess, "Popen", Openssl), (signal, "setitimer", ignore),
                    (atexit, "register", register), (time, "sleep", sleep), (os, "times", times)):
                stack.enter_context(mock.patch.object(module, name, other))
            yield

    @contextlib.contextmanager
    def streams(self):
        """Catch what is written to the standard streams, and put the umask back."""
        umask = os.umask(0o022)
        saved = [os.dup(number) for number in (1, 2)]
        caught = [tempfile.TemporaryFile(dir=self.folder) for _ in saved]
        for number, file in zip((1, 2), caught):
            os.dup2(file.fileno(), number)
        try:
            yield caught
        finally:
            for number, copy in zip((1, 2), saved):
                os.dup2(copy, number)
                os.close(copy)
            os.umask(umask)

    def main(self, *words, script=None):
        """Run main(); return its status and what it wrote. The invariants are checked here."""
        self.ca.script, self.ca.counts, self.ca.requests = script or {}, {}, []
        before = scripted_ca.snapshot(self.challenges)
        files = len(os.listdir("/proc/self/fd"))
        with self.apart(), self.streams() as caught:
            try:
                status = self.module.main(["--disable-check", *map(str, words)])
            except SystemExit as end:
                status = end.code
            finally:
                while self.ends:
                    function, args = self.ends.pop()
                    function(*args)
            out, err = (os.pread(file.fileno(), 1 << 22, 0).decode() for file in caught)
            for file in caught:
                file.close()
        self.close_new_files(files)
        self.check(status, out, err, before)
        return status, out, err

    @staticmethod
    def close_new_files(count):
        """Close what main() has left open for the end of the process."""
        numbers = sorted(map(int, os.listdir("/proc/self/fd")), reverse=True)
        for number in numbers[:max(0, len(numbers) - count)]:
            with contextlib.suppress(OSError):
                if os.readlink("/proc/self/fd/%d" % number) == os.devnull:
                    os.close(number)

    def check(self, status, out, err, before):
        """What holds for every run."""
        assert status in (0, 1, 2, 3), status
        assert "Traceback" not in err and not scripted_ca.HARMFUL.search(err), err
        assert bool(scripted_ca.refusals(err)) == (status in (1, 2)), err
        assert scripted_ca.snapshot(self.challenges) == before
        if status:
            assert not out, out
        else:
            self.check_certificate(out)

    def check_certificate(self, out):
        """What was accepted is for the key and the names of the CSR (if others can read it)."""
        try:
            leaf = x509.load_pem_x509_certificates(out.encode())[0]
            names, key = support.names_of(leaf), support.public_der(leaf.public_key())
        except Exception:                   # another parser, which has its own reasons
            return
        assert {name.lower() for name in names} >= set(NAMES)
        assert key == support.public_der(self.key.public_key())

    def issue(self, script=None, *more):
        """Order a certificate as usual."""
        return self.main("--account-key", "account.key", "--csr", self.csr, "--acme-dir",
                         self.challenges, "--ca", self.ca.directory, *more, script=script)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world, which has to work before anything is spoilt."""
    shared = "/dev/shm"
    folder = tmp_path_factory.mktemp("world")
    if os.access(shared, os.W_OK):          # quicker than a disk, for so many small files
        folder = type(folder)(tempfile.mkdtemp(dir=shared))
    made, environment = World(folder), dict(os.environ)
    os.environ["SSL_CERT_FILE"] = str(made.ca.ca_file)
    status, out, err = made.issue()
    assert (status, out.count("BEGIN"), made.ca.violations) == (0, 2, []), err
    yield made
    os.environ.clear()
    os.environ.update(environment)
    made.ca.violations = []                 # a client that is lied to sends odd things
    made.ca.__exit__(None)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


# ---- What the CA sends

TEXT = st.text(max_size=30) | st.sampled_from(["valid", "pending", "invalid", "ready", "processing",
                                               "http-01", "dns", "ip", "", "https://localhost/x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(LEAVES, lambda each: st.lists(each, max_size=4)
                      | st.dictionaries(TEXT, each, max_size=4), max_leaves=8)
RAW = st.binary(max_size=60) | st.sampled_from([b"[" * 100000, b"{\"a\":" * 50000, b"9" * 9999])
RESOURCES = st.sampled_from(["directory", "newNonce", "newAccount", "newOrder", "authz", "order",
                             "challenge", "finalize", "certificate"])
HEADERS = st.sampled_from(["Location", "Replay-Nonce", "Retry-After", "Content-Type", "Link"])
LATIN = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)
STATUS = st.sampled_from([200, 201, 202, 204, 301, 400, 401, 403, 404, 409, 429, 500, 503])
SPOILS = st.one_of(
    st.tuples(st.just("node"), st.integers(0, 60), VALUES),
    st.tuples(st.just("node"), st.integers(0, 60), st.just(scripted_ca.MISSING)),
    st.tuples(st.just("body"), st.none(), VALUES | RAW),
    st.tuples(st.just("header"), HEADERS, LATIN | st.integers(-9, 10 ** 12).map(str) | st.none()),
    st.tuples(st.just("status"), st.none(), STATUS),
    st.tuples(st.just("problem"), STATUS, VALUES))


def nodes(value):
    """All places in a JSON value, as (container, key)."""
    found = []
    for key in list(value if isinstance(value, dict) else range(len(value))):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            found += nodes(value[key])
    return found


def spoil(kind, where, value):
    """A fault of the scripted CA."""
    def fault(request, reply):
        if kind == "header":
            reply.headers[where] = value
        elif kind == "status":
            reply.status = value
        elif kind == "problem":
            reply.status, reply.body = where, {"type": value, "detail": value, "subproblems": value}
        elif kind == "body":
            reply.body = value
        elif isinstance(reply.body, (dict, list)) and reply.body:
            places = nodes(reply.body)
            container, key = places[where % len(places)]
            if value is scripted_ca.MISSING:
                del container[key]
            else:
                container[key] = value
    return fault


@fuzz(150, spoils=st.lists(st.tuples(RESOURCES, st.integers(0, 2), SPOILS), min_size=1, max_size=3))
def test_answers(world, spoils):
    """Answers in which something is different."""
    script = {}
    for resource, turn, what in spoils:
        script.setdefault(resource, [None] * 40)[turn:] = [spoil(*what)] * (40 - turn)
    world.issue(script)


@fuzz(100, spoil=SPOILS)
def test_renewal_information(world, spoil):
    """Renewal information that is different, for a certificate that may be due."""
    fullchain = world.folder / "fullchain.pem"
    fullchain.write_bytes(scripted_ca.pem(world.leaf, world.ca.issuer.intermediate))
    world.ca.options["window"] = [world.leaf.not_valid_before_utc, world.leaf.not_valid_after_utc]
    fault = globals()["spoil"](*spoil)
    world.issue({"renewalInfo": fault, "newOrder": scripted_ca.problem("malformed")}, "--renew",
                "--fullchain-file", fullchain)


# ---- Bytes

EDITS = st.lists(st.one_of(
    st.tuples(st.just("set"), st.integers(0, 4000), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(0, 4000), st.integers(1, 40)),
    st.tuples(st.just("put"), st.integers(0, 4000), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("end"), st.integers(0, 4000), st.none()),
    st.tuples(st.just("nest"), st.integers(0, 4000), st.integers(1, 3000))), min_size=1, max_size=4)


def edited(data, edits):
    """Bytes with some edits."""
    data = bytearray(data)
    for kind, place, value in edits:
        place %= len(data) + 1
        if kind == "set" and place < len(data):
            data[place] = value
        elif kind == "cut":
            del data[place:place + value]
        elif kind == "put":
            data[place:place] = value
        elif kind == "end":
            del data[place:]
        elif kind == "nest":
            data[place:place] = b"\x30\x80" * value
    return bytes(data)


BYTES = st.binary(max_size=200) | EDITS


def made(data, how):
    """Random bytes, or edited ones."""
    return how if isinstance(how, bytes) else edited(data, how)


def wrap(data, label=b"CERTIFICATE"):
    """A block of PEM."""
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label, base64.encodebytes(data), label)


@fuzz(120, how=BYTES, raw=st.booleans())
def test_certificates(world, how, raw):
    """A certificate whose DER, or whose PEM, is different."""
    der = world.leaf.public_bytes(serialization.Encoding.DER)
    sent = made(wrap(der), how) if raw else wrap(made(der, how))
    chain = scripted_ca.pem(world.ca.issuer.intermediate)
    world.issue({"certificate": scripted_ca.replace(sent + chain)})


@fuzz(120, how=BYTES, raw=st.booleans())
def test_old_certificates(world, how, raw):
    """A certificate on disk that may be due; one that cannot be read is due."""
    der = world.leaf.public_bytes(serialization.Encoding.DER)
    fullchain = world.folder / "fullchain.pem"
    fullchain.write_bytes(made(wrap(der), how) if raw else wrap(made(der, how)))
    world.issue({"newOrder": scripted_ca.problem("malformed")}, "--renew", "--fullchain-file",
                fullchain)


@fuzz(120, how=BYTES, raw=st.booleans())
def test_requests(world, how, raw):
    """A CSR that is different: it is refused, or the CA refuses what is ordered for it."""
    text = (world.folder / "domain.csr").read_bytes()
    der = x509.load_pem_x509_csr(text).public_bytes(serialization.Encoding.DER)
    odd = world.folder / "odd.csr"
    odd.write_bytes(made(text, how) if raw else wrap(made(der, how), b"CERTIFICATE REQUEST"))
    world.main("--account-key", "account.key", "--csr", odd, "--acme-dir", world.challenges,
               "--ca", world.ca.directory, script={"newOrder": scripted_ca.problem("malformed")})


@fuzz(100, how=BYTES)
def test_openssl(world, how):
    """What openssl says is different."""
    Openssl.spoil = staticmethod(lambda data: made(data, how))
    try:
        world.issue()
    finally:
        Openssl.spoil = staticmethod(lambda data: data)


# ---- Settings

KEYS = st.sampled_from(["AccountKey", "CSR", "AcmeDir", "DocumentRoot", "CertFile", "CA", "Quiet",
                        "Renew", "Contact", "EabKid", "EabHmacKey", "CheckPort", "Profile", "_x",
                        "site.example", "Force", "NoChain"]) | st.text(max_size=20)


@fuzz(120, config=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3),
                                  max_size=5) | VALUES, edits=st.none() | EDITS)
def test_configurations(world, config, edits):
    """A configuration of any shape; most are wrong usage."""
    path = world.folder / "config.json"
    data = json.dumps(config).encode()
    path.write_bytes(edited(data, edits) if edits else data)
    world.main("--config-json", path, "--csr", world.folder / "missing")


@fuzz(100, words=st.lists(st.text(max_size=20).filter(lambda word: not re.match("-+(h|v)", word))
                          | st.sampled_from(["--csr", "--ca", "--quiet", "--contact", "--renew"]),
                          max_size=5))
def test_command_lines(world, words):
    """Any words."""
    world.main(*words, "--csr", world.folder / "missing")


