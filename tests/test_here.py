"""What becomes of a run when something is wrong on this machine: files, openssl, disk, clock, site.

As in test_faults.py, scripted_ca.Trial judges every run. What can be found out here is found out
before the CA is contacted.
"""
import contextlib
import http.server
import json
import os
import pty
import signal
import stat
import sys
import threading
import time

import pytest
import scripted_ca
import support
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtensionOID
from scripted_ca import elsewhere
from support import fake_openssl

trial = scripted_ca.trial
core = pytest.mark.core

# Put before a command: it gets a view of its own of what is mounted.
OWN_MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


def shell(script, *words):
    """Put before a command: a shell script whose "$@" is that command, after words of its own."""
    return ["sh", "-c", script, "sh", *words]


def refused(trial, *words, status=(1,), **run):
    """Run something that has to fail before the CA is asked anything."""
    result = trial.run(**run)
    said = "\n".join(scripted_ca.refusals(result.err))
    assert result.status in status and all(word in said for word in words), result.err
    assert result.ca.connections == 0
    return result


# ---- Input files

INPUTS = ["--account-key", "--csr", "--config-json"]
CONTENT = {"empty": b"", "binary": bytes(range(256)) * 40, "text": b"hello\n",
           "pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
           "half-pem": b"-----BEGIN CERTIFICATE REQUEST-----\nMII", "deep": b"[" * 200000,
           "other-pem": scripted_ca.pem(scripted_ca.Issuer().root)}


@pytest.mark.parametrize("option", INPUTS)
@pytest.mark.parametrize("content", CONTENT)
def test_an_input_holds_nonsense(trial, tmp_path, option, content):
    """The error names the file."""
    path = tmp_path / "nonsense"
    path.write_bytes(CONTENT[content])
    refused(trial, status=(1, 2), args={option: path})


def missing(path):
    """There is nothing at all."""


def directory(path):
    """Put a directory there."""
    path.mkdir()


def locked(path):
    """Put a file there that may not be read."""
    path.touch(0)


def huge(path):
    """Put 20 MB there."""
    path.touch()
    os.truncate(path, 20000000)


def pipe(path):
    """Put a pipe there that nobody writes into."""
    os.mkfifo(path)


@pytest.mark.parametrize("option", INPUTS)
@pytest.mark.parametrize("make", [
    pytest.param(missing, marks=core), directory, locked, huge, pipe],
    ids=lambda make: make.__name__)
def test_an_input_is_no_good_file(trial, tmp_path, option, make):
    """Where openssl reads for ever, or for long, the bound of the whole run ends it."""
    make(tmp_path / "input")
    bound = make == pipe or (make, option) == (huge, "--account-key")
    words = [] if bound or option == "--config-json" else ["input"]
    refused(trial, *words, status=(1, 2), args={option: tmp_path / "input"}, scale=0.001,
            wrapper=support.UNPRIVILEGED)


@pytest.mark.parametrize("option", ["--csr", "--config-json"])
def test_an_input_never_ends(trial, option):
    """What Python reads, it reads up to a limit."""
    refused(trial, status=(1, 2), args={option: "/dev/zero"})


def old_style(key):
    """An RSA key in the old form, encrypted with a password."""
    return key.private_bytes(serialization.Encoding.PEM,
                             serialization.PrivateFormat.TraditionalOpenSSL,
                             serialization.BestAvailableEncryption(b"password"))


def private(key):
    """A private key as it should be."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def public(key):
    """The public half of a key alone."""
    return key.public_key().public_bytes(serialization.Encoding.PEM,
                                         serialization.PublicFormat.SubjectPublicKeyInfo)


KEYS = {
    "encrypted-old": lambda: old_style(rsa.generate_private_key(65537, 2048)),
    "public": lambda: public(ec.generate_private_key(ec.SECP256R1())),
    "ed25519": lambda: private(ed25519.Ed25519PrivateKey.generate()),
    "ed448": lambda: private(ed448.Ed448PrivateKey.generate()),
    "p521": lambda: private(ec.generate_private_key(ec.SECP521R1())),
    "bitcoin": lambda: private(ec.generate_private_key(ec.SECP256K1())),
}


@pytest.mark.parametrize("kind", KEYS)
def test_the_key_is_of_another_kind(trial, tmp_path, kind):
    """The error names the file, and shows nothing of it."""
    (tmp_path / "odd.key").write_bytes(KEYS[kind]())
    refused(trial, "odd.key", args={"--account-key": tmp_path / "odd.key"})


# Put before a command: the terminal that is its standard input becomes its controlling one.
OWN_TERMINAL = """
import fcntl, os, sys, termios
if os.getsid(0) != os.getpid():
    os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@core
@pytest.mark.parametrize("style", ["new", "old"])
def test_no_prompt_for_a_password(trial, key, tmp_path, style):
    """Not even with a terminal at hand, which openssl would open by itself."""
    encrypted = key("encrypted")
    if style == "old":
        encrypted = tmp_path / "old.key"
        encrypted.write_bytes(KEYS["encrypted-old"]())
    master, terminal = pty.openpty()
    with trial.letsacme.start(*trial.arguments({"--account-key": encrypted}), stdin=terminal,
                              wrapper=[sys.executable, "-c", OWN_TERMINAL]) as process:
        try:
            out, err = process.communicate(timeout=30)
        finally:
            support.end(process)
    assert process.returncode == 1 and not out and encrypted.name.encode() in err
    os.set_blocking(master, False)
    with pytest.raises(BlockingIOError):    # nothing was written to the terminal
        os.read(master, 1000)
    os.close(terminal)
    os.close(master)


# ---- The CSR

def other_name():
    """A kind of name that only Microsoft uses."""
    return x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x02me")


NAMES = {
    "none": [], "mail": [x509.RFC822Name("me@site.example")], "other": [other_name()],
    "uri": [x509.UniformResourceIdentifier("https://site.example/")],
    "registered": [x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4"))],
    "directory": [x509.DirectoryName(scripted_ca.common_name("site.example"))],
    **{repr(name): [x509.DNSName(name)] for name in (
        "", ".", "..", ".example", "a..example", "a b.example", "a/../b.example", "a\nb.example",
        "a\0.example", "\x1b[31m.example", "a.example:80", "a@b.example", "-", "*", "*.*.example",
        "a.*.example")},
}


def write_request(path, entries, key):
    """Write a CSR with any entries in its SubjectAltName, beside a good one."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if entries:
        entries = [x509.DNSName("site.example"), *entries]
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), False)
    request = builder.sign(support.load_key(key), hashes.SHA256())
    path.write_bytes(request.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("entries", NAMES)
def test_the_csr_asks_for_odd_names(trial, tmp_path, entries):
    """Nothing is ordered, not even the good name beside the odd one."""
    path = write_request(tmp_path / "odd.csr", NAMES[entries], trial.key)
    refused(trial, args={"--csr": path})


@pytest.mark.parametrize("value", [b"", b"\x30\x00", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff",
                                   b"\x30\x03\x87\x01\x7f", b"\x30\x02\x82\x00", b"\x05\x00",
                                   b"\x30\x80" * 1000], ids=bytes.hex)
def test_the_names_of_the_csr_are_garbled(trial, csr, value):
    """The extension holds other bytes than it should."""
    extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value)
    refused(trial, args={"--csr": csr(extensions=[(extension, False)])})


@core
def test_names_in_capitals_and_twice(trial, csr):
    """They are ordered once, in small letters (the scripted CA insists)."""
    path = csr(["WWW.Site.EXAMPLE", "www.site.example", "site.example"], cn="SITE.example")
    trial.works(args={"--csr": path})


# ---- openssl

# Notes the process of each signature; in a session of its own it is not ended with the run.
RECORD = '[ $1 = dgst ] && echo $$ >> %s\nexec setsid $real "$@"'

FAILURES = {
    "fails": "exit 1", "says why": "printf 'no \\033[31mluck\\n' >&2; exit 1",
    "is killed": "kill -9 $$", "says nothing": "true", "says nonsense": "printf nonsense",
    "cuts": "printf '\\060\\003\\002'", "says too little": "printf '\\060\\003\\002\\001\\001'",
    "says much": "head -c 1000000 /dev/zero",
    "says much and fails": "yes no | head -c 1000000 >&2; exit 1",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_openssl_fails(trial, tmp_path, failure):
    """It cannot read the key, or says that it can."""
    refused(trial, env=fake_openssl(tmp_path / "bin", FAILURES[failure]))


@pytest.mark.parametrize("failure", FAILURES)
def test_openssl_fails_to_sign(trial, tmp_path, failure):
    """It can read the key; what it gives as a signature may be found out by the CA alone."""
    script = 'if [ $1 != dgst ]; then exec $real "$@"; fi\n' + FAILURES[failure]
    trial.fails(None, ca={"forgive": True}, env=fake_openssl(tmp_path / "bin", script))


@core
def test_openssl_is_missing(trial, tmp_path):
    """The error says what is to be in PATH."""
    refused(trial, "openssl", env={"PATH": str(tmp_path)})


@core
def test_openssl_is_slow(trial, tmp_path):
    """Slower than a socket may be."""
    trial.works(scale=0.005, env=fake_openssl(tmp_path / "bin", 'sleep 0.3\nexec $real "$@"'))


@pytest.mark.parametrize("command", ["pkey", pytest.param("dgst", marks=core)])
@pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM; while :; do sleep 0.1; done"])
def test_openssl_hangs(trial, tmp_path, command, script):
    """The bound of the whole run ends it too."""
    pids = tmp_path / "pids"
    script = "echo $$ >> %s\n%s" % (pids, script)
    script = 'if [ $1 != %s ]; then exec $real "$@"; fi\n%s' % (command, script)
    survivors = []
    try:
        trial.fails(None, scale=0.002, env=fake_openssl(tmp_path / "bin", script))
    finally:
        for pid in pids.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
                survivors.append(pid)
    assert not survivors


@core
def test_openssl_gets_ready_while_the_ca_is_at_work(trial, tmp_path):
    """The order is answered only when the signature after it has its process; none is left over."""
    pids = tmp_path / "pids"

    def started():
        """The processes so far that sign: account, order, and what comes next."""
        return pids.read_text().split()

    def wait(handler, data):
        """Answer in the end in any case."""
        end = time.monotonic() + 10
        while len(started()) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        seen.extend(started())
        handler.wfile.write(data)

    seen = []
    trial.works({"newOrder": elsewhere(wait)}, env=fake_openssl(tmp_path / "bin", RECORD % pids))
    assert len(seen) == 3
    assert not [pid for pid in started() if os.path.exists("/proc/" + pid)]


def test_openssl_is_a_wrapper(trial, tmp_path):
    """What a shell script has started, and which the last one leaves behind, is not waited for."""
    count = tmp_path / "count"
    script = '[ $1 = dgst ] && echo >> %s\n%s\n$real "$@"' % (count, "%s")
    trial.works(env=fake_openssl(tmp_path / "bin", script % ""))
    last = len(count.read_text().splitlines())
    count.write_text("")
    hang = '[ "$(wc -l < %s)" = %d ] && sleep 1000' % (count, last)
    trial.works(env=fake_openssl(tmp_path / "other", script % hang))


@core
@pytest.mark.usefixtures("warnings_off")
def test_the_openssl_that_waits_is_ended(trial, tmp_path):
    """By a machine that is short of memory, for one: another takes its place."""
    pids = tmp_path / "pids"

    def strike(handler, data):
        """Before the order is answered; each of them may take a moment to start, and to end."""
        time.sleep(0.5)
        os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
        time.sleep(0.5)
        handler.wfile.write(data)

    trial.works({"newOrder": elsewhere(strike)}, env=fake_openssl(tmp_path / "bin", RECORD % pids))


# ---- Challenge directories

@pytest.mark.parametrize("make", [pytest.param(missing, marks=core), directory, locked, pipe],
                         ids=lambda make: make.__name__)
def test_the_challenge_directory_is_none(trial, tmp_path, make):
    """Absent, a file or a pipe; or a directory that may not be written."""
    make(tmp_path / "place")
    if make is directory:
        (tmp_path / "place").chmod(0o555)
    refused(trial, "place", args={"--acme-dir": tmp_path / "place"}, wrapper=support.UNPRIVILEGED)


@pytest.mark.parametrize("typo", ["_well-known/acme-challenge", ".well-known/acme-challenges"])
def test_the_challenge_directory_is_misspelt(trial, typo):
    """Only the well-known one is made in a document root that exists."""
    (trial.site / "root").mkdir()
    refused(trial, typo, args={"--acme-dir": trial.site / "root" / typo})


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, pytest.param(0o077, marks=core), 0o777],
                         ids=oct)
def test_umask(trial, umask):
    """The web server can read what it has to serve, and its directories."""
    root = trial.site / "root"
    root.mkdir()
    trial.challenges = root / ".well-known" / "acme-challenge"
    folders = ["root/.well-known", "root/.well-known/acme-challenge"]
    args = {"--acme-dir": None, "--config-json": json.dumps({"DocumentRoot": str(root)})}
    result = trial.works(args=args, changed=folders, wrapper=shell('umask %o; "$@"' % umask))
    assert {mode for _, mode in result.ca.files} == {stat.S_IFREG | 0o644}
    assert {(trial.site / each).stat().st_mode for each in folders} == {stat.S_IFDIR | 0o755}


# ---- What lies in the place of a challenge file

TOKEN = "A" * 43


def full_directory(path):
    """Put a directory with something in it there."""
    path.mkdir()
    (path / "keep").write_text("this is someone's")


def link(path):
    """Put a link to a file there."""
    path.symlink_to("../cert.pem")


def link_to_nothing(path):
    """Put a link there that leads nowhere yet."""
    path.symlink_to("../made")


def link_to_directory(path):
    """Put a link to a directory there."""
    path.symlink_to("..")


def file(path):
    """Put a file there that is longer than a challenge."""
    path.write_text("x" * 10000)


@core
def test_a_directory_has_the_name_of_the_token(trial):
    """It stays."""
    full_directory(trial.challenges / TOKEN)
    result = trial.fails(None, TOKEN, "directory", ca={"token": TOKEN})
    assert result.ca.count("challenge") == 0


@pytest.mark.parametrize("make", [pytest.param(full_directory, marks=core), directory])
def test_a_directory_gives_way_by_force(trial, make):
    """That is what --force is for."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": True}, ca={"token": TOKEN},
                changed=["challenges/" + TOKEN, "challenges/%s/keep" % TOKEN])
    assert not list(trial.challenges.iterdir())


@pytest.mark.parametrize("make", [pytest.param(link, marks=core), link_to_nothing, file, pipe,
                                  link_to_directory])
@pytest.mark.parametrize("force", [True, None])
def test_something_has_the_name_of_the_token(trial, make, force):
    """A link is not followed: its target is neither written nor removed."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": force}, ca={"token": TOKEN}, changed=["challenges/" + TOKEN])
    assert not list(trial.challenges.iterdir())


# ---- Disks, outputs and streams

# A disk of four pages, two of which hold the old outputs; what it holds in the end is copied.
DISK = """
disk=$1 fill=$2 left=$3
shift 3
mount -t tmpfs -o size=16k,mode=755 tmpfs "$disk" && cp -p "$disk"/../*.pem "$disk"
head -c "$fill" /dev/zero > "$disk/fill"
"$@"
status=$?
rm "$disk/fill"
cp -rp "$disk" "$left"
exit $status
"""


@core
@pytest.mark.parametrize("options, fill", [
    (["--acme-dir"], 8192), (["--cert-file", "--chain-file"], 8192),
    (["--cert-file", "--chain-file"], 4096)], ids=["challenges", "outputs", "room-for-one-output"])
def test_the_disk_is_full(trial, tmp_path, options, fill):
    """What was there stays, and nothing is added to it."""
    disk = trial.site / "disk"
    disk.mkdir()
    args = {name: disk if name == "--acme-dir" else disk / trial.options[name].name
            for name in options}
    wrapper = OWN_MOUNTS + shell(DISK, disk, fill, tmp_path / "left")
    trial.fails(None, "No space", args=args, wrapper=wrapper)
    left = {path.name: path.read_bytes() for path in (tmp_path / "left").iterdir()}
    assert left == {"cert.pem": scripted_ca.OLD, "chain.pem": scripted_ca.OLD}


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_streams_that_do_not_matter(trial, streams):
    """A log that is lost is no error, and no file is taken for the log."""
    trial.works(wrapper=shell('"$@" ' + streams))


@pytest.mark.parametrize("streams", [">&-", pytest.param(">/dev/full", marks=core), ">&- 2>&- <&-"])
def test_the_output_cannot_be_printed(trial, streams):
    """That is a failure; the output files are old or new, and whole."""
    with trial.serve() as ca:
        result = trial.letsacme(*trial.arguments(), ca=ca, wrapper=shell('"$@" ' + streams))
    assert result.status == 1
    assert "2>&-" in streams or scripted_ca.refusals(result.err)
    for path in (trial.cert, trial.chain):
        assert path.read_bytes() == scripted_ca.OLD or support.load_chain(path.read_text())
    assert not list(trial.challenges.iterdir())


def test_nobody_reads_the_output(trial):
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    trial.fails(None, stdout=writer, changed=["cert.pem", "chain.pem"])
    os.close(writer)
    assert all(path.read_bytes() for path in (trial.cert, trial.chain))


WORDS = "\u043a\u043b\u044e\u0447-\u4e2d\u6587-\xe9-\U0001f511"     # letters of several scripts


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "xx_XX.nonsense"])
def test_other_scripts(trial, locale):
    """In paths, in the configuration, in the words of the CA; whatever the locale can show."""
    folder = trial.site / WORDS
    trial.challenges.rename(folder)
    trial.challenges = folder
    env = {"LC_ALL": locale, "LANG": locale}
    trial.works(args={"--acme-dir": folder}, env=env)
    config = json.dumps({"AcmeDir": str(folder), "_": WORDS}, ensure_ascii=False)
    trial.works(args={"--acme-dir": None, "--config-json": config}, env=env)
    trial.fails({"newOrder": scripted_ca.problem("malformed", detail=WORDS)}, "malformed",
                args={"--acme-dir": folder}, env=env)
    refused(trial, args={"--acme-dir": folder / WORDS}, env=env)


def test_a_path_that_is_no_text(trial):
    """Bytes that no locale can read are a name like any other, or an error."""
    folder = os.fsencode(trial.site) + b"/\xff\xfe"
    os.mkdir(folder)
    with trial.serve(challenges=trial.site / os.fsdecode(b"\xff\xfe")) as ca:
        result = trial.letsacme(*trial.arguments({"--acme-dir": os.fsdecode(folder)}), ca=ca)
    assert result.status == 0 or scripted_ca.refusals(result.err)
    assert not os.listdir(folder)


@core
def test_two_runs_at_once(trial):
    """They share account, directory and outputs: both end well, or one says why not."""
    with trial.serve({"order": elsewhere(scripted_ca.late(0.2))}) as ca:
        processes = [trial.letsacme.start(*trial.arguments(), ca=ca) for _ in range(3)]
        try:
            results = [(process, *process.communicate(timeout=60)) for process in processes]
        finally:
            for process in processes:
                support.end(process)
    assert 0 in [process.returncode for process, _, _ in results]
    for process, out, err in results:
        assert process.returncode == 0 or (not out and b"E: " in err and b"Traceback" not in err)
    for path in (trial.cert, trial.chain):
        assert len(support.load_chain(path.read_text())) == 1
    assert not list(trial.challenges.iterdir())
    assert sorted(path.name for path in trial.site.iterdir()) == ["cert.pem", "chain.pem",
                                                                  "challenges"]


# ---- The clock

@pytest.mark.parametrize("shift", [pytest.param("-10y", marks=core), "+10y"])
def test_the_clock_is_wrong(trial, shift):
    """The CA's own certificate seems to be of another time: that is final."""
    result = trial.fails(None, "certificate", clock=shift)
    assert result.ca.connections == 1


@pytest.mark.parametrize("shift", ["-10y", "+10y"])
def test_the_clock_is_set_in_the_middle(trial, tmp_path, shift):
    """Waiting goes by another clock."""
    clock = tmp_path / "clock"
    clock.write_text("+0")

    def set_clock(request, reply):
        """Change the time while the CA answers."""
        clock.write_text(shift)
    env = {"FAKETIME": None, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    trial.works({"order": [set_clock]}, ca={"tls_days": (-9999, 9999), "validation": 3}, env=env,
                clock="+0")


# ---- The site that serves the challenges

class Page(http.server.BaseHTTPRequestHandler):
    """Serves the challenge directory, or does what the test says."""

    def do_GET(self):
        """Answer as a web server does, and let the test spoil it."""
        path = self.server.folder / self.path.rpartition("/")[2]
        reply = scripted_ca.Reply(200, path.read_bytes() if path.is_file() else b"")
        if self.server.fault:
            self.server.fault(self, reply)
        reply.deliver(self, reply.render())

    def log_message(self, *_):
        """Say nothing."""


class Site(http.server.ThreadingHTTPServer):
    """A web server for a challenge directory."""

    def __init__(self, folder, fault):
        super().__init__(("127.0.0.1", 0), Page)
        self.folder, self.fault = folder, fault

    def handle_error(self, *_):
        """A client may leave at any time."""


@pytest.fixture
def site(trial):
    """site(fault) has the script check its files on a site with this fault."""
    servers = []

    def make(fault=None):
        """Start it and have the script use it; return what ScriptedCA needs to know."""
        servers.append(Site(trial.challenges, fault))
        threading.Thread(target=servers[0].serve_forever, args=(0.02,), daemon=True).start()
        for name in trial.names:
            trial.letsacme.add_host(name)
        trial.options["--disable-check"] = None
        return {"http_port": servers[0].server_port}
    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@core
def test_the_site_is_good(trial, site):
    """This is how it should be; a byte order mark or a line end more do no harm."""
    trial.works(ca=site())


SITES = {
    "404": scripted_ca.change(status=404), "500": scripted_ca.change(status=500),
    "another-page": scripted_ca.replace(b"<html>Hello</html>"), "nothing": scripted_ca.replace(b""),
    "cut": scripted_ca.replace(b"A" * 20), "binary": scripted_ca.replace(bytes(range(256))),
    "loop": scripted_ca.redirect("/.well-known/acme-challenge/x"),
    "to-a-file": scripted_ca.redirect("file:///etc/hostname"),
    "to-ftp": scripted_ca.redirect("ftp://127.0.0.1:1/x"),
    "to-nowhere": scripted_ca.redirect("http://127.0.0.1:1/"),
    "to-nonsense": scripted_ca.redirect("http://[::1"),
    "to-escapes": scripted_ca.redirect("http://127.0.0.1:1/\x1b[31m\x9b"),
    "reset": elsewhere(scripted_ca.hang_up), "closed": elsewhere(scripted_ca.close_instead),
    "silence": elsewhere(scripted_ca.stay_silent), "flood": elsewhere(scripted_ca.flood()),
    "no-http": elsewhere(scripted_ca.wire(b"\x1b[31m\0\xff\r\n\r\n")),
    "escapes": elsewhere(scripted_ca.wire(b"HTTP/1.1 404 \x1b[31m\x9b\r\n\r\n\x1b[31m")),
    "authentication": scripted_ca.change(401, {"WWW-Authenticate": "Basic realm=\x9b"}),
}


@pytest.mark.parametrize("fault", SITES)
def test_the_site_is_wrong(trial, site, fault):
    """The file is gone again, and the CA has not been asked to look at it."""
    words = ["Wrote file to", "couldn't download", "/.well-known/acme-challenge/"]
    if fault == "escapes":                  # Python 2.7 cannot put such a status line into words
        words = []
    result = trial.fails(None, *words, ca=site(SITES[fault]))
    assert result.ca.count("challenge") == 0


def test_the_site_drips_for_ever(trial, site):
    """Only the bound of the whole run ends that."""
    drip = scripted_ca.drip(0.02, b"x")
    fault = elsewhere(lambda handler, data: drip(handler, b"HTTP/1.1 200 OK\r\n\r\n"))
    trial.fails(None, scale=0.002, ca=site(fault))


@core
def test_the_site_has_no_address(trial):
    """No such name, and nobody listens."""
    args = {"--disable-check": None}
    trial.fails(None, "couldn't download", args=args, env={"RES_OPTIONS": "attempts:1 timeout:1"})


# ---- The name server

# Put before a command: in a network of its own, the name server is there but never answers.
SILENT_DNS = """
import socket, subprocess, sys
conf, asked, ip, *command = sys.argv[1:]
subprocess.run([ip, "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", conf, "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
status = subprocess.call(command)
server.setblocking(False)
with open(asked, "wb") as questions:
    questions.write(server.recv(1000))
sys.exit(status)
"""


@core
def test_the_name_server_is_silent(trial, tmp_path):
    """The run ends after the resolver has given up as often as the bound allows."""
    conf, asked = tmp_path / "resolv.conf", tmp_path / "asked"
    conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    wrapper = [*OWN_MOUNTS, "-n", sys.executable, "-c", SILENT_DNS, conf, asked, support.tool("ip")]
    before = scripted_ca.snapshot(trial.site)
    result = trial.letsacme(*trial.arguments(), "--ca", "https://silent.example/directory",
                            scale=0.01, wrapper=wrapper, env={"LD_PRELOAD": None}, timeout=60)
    assert result.status == 1 and "silent.example" in result.err
    assert b"silent" in asked.read_bytes()
    trial.judge(result.err, before)
