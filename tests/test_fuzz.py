"""Random answers, certificates, requests and settings, in this process: none of them may surprise.

Only the outside of letsacme.py is replaced: the network leads straight to a scripted CA, openssl is
the cryptography library, time passes without waiting, signals are kept from this process. The suite
runs the same few cases every time; LETSACME_FUZZ=100000 runs that many others of each kind.
"""
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from email.parser import BytesHeaderParser
from pathlib import Path
from unittest import mock

import pki
import pytest
import scripted_ca
import support
import trials
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from faults import MISSING, problem, replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("LETSACME_FUZZ", "0"))
NAMES = ["www.site.example", "site.example"]


def fuzz(few, **strategies):
    """Run a test on so many cases, the same ones each time; or on many, if that was asked for."""
    config = settings(max_examples=CASES or few, derandomize=not CASES, database=None,
                      deadline=None, suppress_health_check=list(HealthCheck))
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
        self.world.clock += 0.05
        if len(self.world.ca.requests) > 2000:
            raise Endless
        try:
            reply = self.world.ca.answer(scripted_ca.Request(method, path, headers, body))
        except (LookupError, TypeError, AttributeError):  # a fault has spoilt what the CA keeps
            raise ConnectionResetError from None
        return io.BytesIO(reply.render(head=method == "HEAD"))

    def close(self):
        """Nothing is open."""


class World:
    """letsacme.py as a module, a scripted CA, and the folder in which main() is called."""

    def __init__(self, folder):
        self.folder, self.challenges = folder, folder / "challenges"
        self.clock, self.spoil = 0, None
        self.challenges.mkdir()
        self.ca = scripted_ca.ScriptedCA(folder / "ca", challenges=self.challenges)
        spec = importlib.util.spec_from_file_location("letsacme", support.SCRIPT)
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.account, self.key = pki.new_key(), pki.load_key(pki.write_key(folder / "key", "p256"))
        self.csr = pki.write_csr(folder / "domain.csr", NAMES, folder / "key")
        self.account_file = pki.write_key(folder / "account.key", "p256")
        self.leaf = self.ca.issuer.leaf(NAMES, self.key.public_key(), days=(-90, 1))

    def openssl(self, command, input=b"", **_):
        """Do what the openssl commands of letsacme.py do, with one key."""
        assert command[0] == "openssl" and command[1] in ("pkey", "dgst"), command
        output = pki.public_der(self.account.public_key())
        if command[1] == "dgst":
            output = self.account.sign(input, ec.ECDSA(hashes.SHA256()))
        if self.spoil is not None:
            output = made(output, self.spoil)
        return subprocess.CompletedProcess(command, 0, output, b"")

    @contextlib.contextmanager
    def apart(self):
        """Let the module have no effect on this process, no network and no openssl."""
        def connect(connection):
            """Lead to the scripted CA."""
            connection.sock = Wire(self)

        def sleep(seconds):
            """Let time pass."""
            assert seconds >= 0
            self.clock += seconds

        def ignore(*_):
            """Do nothing."""
        with contextlib.ExitStack() as stack:
            for module, name, other in (
                    (http.client.HTTPSConnection, "connect", connect), (time, "sleep", sleep),
                    (time, "monotonic", lambda: self.clock), (subprocess, "run", self.openssl),
                    (signal, "signal", ignore), (signal, "setitimer", ignore),
                    (signal, "pthread_sigmask", ignore)):
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
        """Run main(), and check what holds for every run."""
        self.ca.script, self.ca.counts, self.ca.requests = script or {}, {}, []
        before = trials.snapshot(self.challenges)
        with self.apart(), self.streams() as caught:
            try:
                status = self.module.main(["--disable-check", *map(str, words)])
            except SystemExit as end:
                status = end.code
            out, err = (os.pread(file.fileno(), 1 << 22, 0).decode() for file in caught)
            for file in caught:
                file.close()
        assert status in (0, 1, 2, 3), status
        assert not trials.HARMFUL.search(err), err
        support.judge_words(err)
        assert bool(trials.refusals(err)) == (status in (1, 2)), err
        assert trials.snapshot(self.challenges) == before
        assert status == 0 or not out, out
        if status == 0:
            self.check_certificate(out)
        return status, out

    def check_certificate(self, out):
        """What was accepted is for the key and the names of the CSR (if others can read it)."""
        try:
            leaf = x509.load_pem_x509_certificates(out.encode())[0]
            names, key = pki.names_of(leaf), pki.public_der(leaf.public_key())
        except Exception:                   # another parser, which has its own reasons
            return
        assert {name.lower() for name in names} >= set(NAMES)
        assert key == pki.public_der(self.key.public_key())

    def issue(self, script=None, *more):
        """Order a certificate as usual."""
        return self.main("--account-key", self.account_file, "--csr", self.csr, "--acme-dir",
                         self.challenges, "--ca", self.ca.directory, *more, script=script)

    def renew(self, content, script):
        """Renew what is in a file, if that is due; the CA then refuses the order."""
        fullchain = self.folder / "fullchain.pem"
        fullchain.write_bytes(content)
        self.issue({"newOrder": problem("malformed"), **script}, "--renew", "--fullchain-file",
                   fullchain)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world, which has to work before anything is spoilt."""
    shared = "/dev/shm"                     # quicker than a disk, for so many small files
    folder = tmp_path_factory.mktemp("world")
    if os.access(shared, os.W_OK):
        folder = Path(tempfile.mkdtemp(dir=shared))
    made, environment = World(folder), dict(os.environ)
    os.environ["SSL_CERT_FILE"] = str(made.ca.ca_file)
    status, out = made.issue()
    assert (status, out.count("BEGIN"), made.ca.violations) == (0, 2, [])
    yield made
    os.environ.clear()
    os.environ.update(environment)
    made.ca.violations = []                 # a client that is lied to sends odd things
    made.ca.__exit__(None)
    shutil.rmtree(folder)


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
    st.tuples(st.just("node"), st.integers(0, 60), VALUES | st.just(MISSING)),
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
            if value is MISSING:
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


@fuzz(100, what=SPOILS)
def test_renewal_information(world, what):
    """Renewal information that is different, for a certificate that may be due."""
    world.ca.options["window"] = [world.leaf.not_valid_before_utc, world.leaf.not_valid_after_utc]
    world.renew(pki.pem(world.leaf, world.ca.issuer.intermediate), {"renewalInfo": spoil(*what)})


# ---- Bytes

EDITS = st.lists(st.one_of(
    st.tuples(st.just("set"), st.integers(0, 4000), st.integers(0, 255)),
    st.tuples(st.just("cut"), st.integers(0, 4000), st.integers(1, 40)),
    st.tuples(st.just("put"), st.integers(0, 4000), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("end"), st.integers(0, 4000), st.none()),
    st.tuples(st.just("nest"), st.integers(0, 4000), st.integers(1, 3000))), min_size=1, max_size=4)
BYTES = st.binary(max_size=200) | EDITS


def made(data, how):
    """Random bytes, or data with some edits."""
    if isinstance(how, bytes):
        return how
    data = bytearray(data)
    for kind, place, value in how:
        place %= len(data) + 1
        if kind == "set":
            data[place:place + 1] = bytes([value])
        elif kind == "cut":
            del data[place:place + value]
        elif kind == "end":
            del data[place:]
        else:
            data[place:place] = value if kind == "put" else b"\x30\x80" * value
    return bytes(data)


def in_pem(data, how, raw, label=b"CERTIFICATE"):
    """A block of PEM whose text, or whose DER, is different."""
    return made(pki.block(data, label), how) if raw else pki.block(made(data, how), label)


@fuzz(120, how=BYTES, raw=st.booleans())
def test_certificates(world, how, raw):
    """A certificate of the CA's that is different."""
    sent = in_pem(world.leaf.public_bytes(pki.DER), how, raw)
    world.issue({"certificate": replace(sent + pki.pem(world.ca.issuer.intermediate))})


@fuzz(120, how=BYTES, raw=st.booleans())
def test_old_certificates(world, how, raw):
    """A certificate on disk that may be due; one that cannot be read is due."""
    world.renew(in_pem(world.leaf.public_bytes(pki.DER), how, raw), {})


@fuzz(120, how=BYTES, raw=st.booleans())
def test_requests(world, how, raw):
    """A CSR that is different: it is refused, or the CA refuses what is ordered for it."""
    der = x509.load_pem_x509_csr(world.csr.read_bytes()).public_bytes(pki.DER)
    (world.folder / "odd.csr").write_bytes(in_pem(der, how, raw, b"CERTIFICATE REQUEST"))
    world.issue({"newOrder": problem("malformed")}, "--csr", world.folder / "odd.csr")


@fuzz(100, how=BYTES)
def test_openssl(world, how):
    """What openssl says is different."""
    world.spoil = how
    try:
        world.issue()
    finally:
        world.spoil = None


# ---- Settings

KEYS = st.sampled_from(["AccountKey", "CSR", "AcmeDir", "DocumentRoot", "CertFile", "CA", "Quiet",
                        "Renew", "Contact", "EabKid", "EabHmacKey", "CheckPort", "Profile", "_x",
                        "site.example", "Force", "NoChain"]) | st.text(max_size=20)


@fuzz(120, config=st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=3),
                                  max_size=5) | VALUES, edits=st.none() | EDITS)
def test_configurations(world, config, edits):
    """A configuration of any shape; most are wrong usage."""
    (world.folder / "config.json").write_bytes(made(json.dumps(config).encode(), edits or []))
    world.main("--config-json", world.folder / "config.json", "--csr", world.folder / "missing")


@fuzz(100, words=st.lists(st.text(max_size=20).filter(lambda word: not re.match("-+(h|v)", word))
                          | st.sampled_from(["--csr", "--ca", "--quiet", "--contact", "--renew"]),
                          max_size=5))
def test_command_lines(world, words):
    """Any words."""
    world.main(*words, "--csr", world.folder / "missing")
