"""What the tests stand on: the script's interpreter, real servers, keys, CSRs, certificate checks.

The servers are real (Pebble and its DNS, nginx) and listen on free ports of loopback. Programs come
from the tools folder that `sh tests/run.sh` fills, or else from PATH.
"""
import contextlib
import datetime
import functools
import glob
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

TOP = Path(__file__).resolve().parent.parent
SCRIPT = TOP / "letsacme.py"
TOOLS = Path(os.environ.get("LETSACME_TOOLS") or TOP / ".tools")
# Put before a command: root without any capability is an ordinary user who owns root's files.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


# --- programs ------------------------------------------------------------------------------------

def search_path(*parts):
    """A PATH of these parts."""
    return os.pathsep.join(map(str, parts))


def tool(name):
    """The path of a program, from the tools folder or the machine; a missing one is an error."""
    found = shutil.which(name, path=search_path(
        TOOLS / "wrapped", TOOLS / "usr/bin", TOOLS / "usr/sbin", os.environ["PATH"], "/usr/sbin",
        "/sbin"))
    assert found, "%s is missing: 'sh tests/run.sh' fetches all that the tests need" % name
    return found


def library(name, needed=True):
    """The path of a shared library, from the tools folder or the machine.

    A missing one is an error if it is needed, or else "", which LD_PRELOAD overlooks.
    """
    for folder in (TOOLS / "usr/lib/*-linux-*", "/usr/lib/*-linux-*", "/usr/lib64", "/usr/lib"):
        for path in glob.glob("%s/%s" % (folder, name)):
            return path
    assert not needed, "%s is missing: 'sh tests/run.sh' fetches it" % name
    return ""


def tools_env(**more):
    """The environment for unpacked programs: their libraries lie beside them."""
    folders = glob.glob("%s/usr/lib/*-linux-*" % TOOLS)
    return dict(os.environ, LD_LIBRARY_PATH=os.pathsep.join(folders), **more)


@dataclass(frozen=True)
class Interpreter:
    """A Python that letsacme.py is tested with, and the folder of its openssl if it has its own."""
    word: str
    path: str
    name: str
    version: tuple
    openssl: str

    @property
    def command(self):
        """The command that starts it, every warning being an error."""
        return [self.path, "-W", "error"]


# What pyenv puts on PATH are slow scripts: go round them, to the Pythons themselves.
PYTHONS = search_path(
    *(part for part in os.environ["PATH"].split(os.pathsep) if not part.endswith("/shims")),
    TOOLS / "wrapped",
    *sorted(glob.glob(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
                      + "/versions/*/bin")))


def wanted_interpreters():
    """The words of LETSACME_PYTHON: names or paths, each perhaps with + and a folder of tools."""
    return os.environ.get("LETSACME_PYTHON", "").split() or [sys.executable]


@functools.cache
def interpreters():
    """Those of the wanted interpreters that are on this machine."""
    ask = ("import platform, sys; v = sys.version_info; "
           "print('%s %s|%d|%d' % (platform.python_implementation(), platform.python_version(),"
           " v[0], v[1]))")
    found = []
    for word in wanted_interpreters():
        name, _, openssl = word.partition("+")
        path = shutil.which(name, path=PYTHONS)
        answer = path and subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if (answer and answer.returncode == 0
                and (not openssl or (TOOLS / openssl / "openssl").exists())):
            label, major, minor = answer.stdout.strip().split("|")
            found.append(Interpreter(word, path, label, (int(major), int(minor)), openssl))
    return found


current = None


def interpreter():
    """The interpreter for the test that runs now."""
    return current or interpreters()[0]


def script_path():
    """The PATH of letsacme.py."""
    folder = interpreter().openssl
    return search_path(*[TOOLS / folder] if folder else [], os.environ["PATH"])


def openssl_version():
    """The version of the openssl that letsacme.py finds."""
    openssl = shutil.which("openssl", path=script_path())
    answer = subprocess.run([openssl, "version"], capture_output=True, text=True, check=True)
    return " ".join(answer.stdout.split()[:2])


# --- the script under test -----------------------------------------------------------------------

@dataclass
class Result:
    """How a run of letsacme.py ended."""
    status: int
    out: str
    err: str


# Before Python 3.13, the ssl module leaves a socket unclosed where the other side has reset the
# connection before the handshake (such a socket has no raddr). That is no fault of the script.
LEFT_BY_PYTHON = re.compile(
    r"Exception ignored in: <ssl\.SSLSocket.*\nTraceback.*\n(?:  .*\n)+"
    r"ResourceWarning: unclosed <ssl\.SSLSocket (?:(?!raddr).)*>\n")


def end(process):
    """Ends a process that was started in a session of its own, with what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def fake_openssl(folder, script):
    """An environment in which openssl is a shell script; $real is the real one."""
    folder.mkdir()
    (folder / "openssl").write_text("#!/bin/sh\nreal=%s\n%s\n" % (tool("openssl"), script))
    (folder / "openssl").chmod(0o755)
    return {"PATH": "%s:%s" % (folder, os.environ["PATH"])}


class Letsacme:
    """Runs letsacme.py, as a process of its own, in a folder of the test's own."""

    def __init__(self, folder):
        self.folder = folder
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.has_names = False

    def add_host(self, name, address="127.0.0.1"):
        """Lets the script's own look-ups find a name (and nobody else's: see environment)."""
        self.has_names = True
        with self.hosts.open("a") as hosts:
            hosts.write("%s %s\n" % (address, name))

    def environment(self, ca=None, more=None, clock=None):
        """What the script finds in its environment: little, like a cron job."""
        env = {"PATH": script_path(), "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1",
               "LD_PRELOAD": library("libnss_wrapper.so", self.has_names),
               "NSS_WRAPPER_HOSTS": str(self.hosts)}
        if clock:
            env["LD_PRELOAD"] += " " + library("faketime/libfaketime.so.1")
            env["FAKETIME"] = clock
        if ca:
            env["SSL_CERT_FILE"] = str(ca.ca_file)
        env.update(more or {})
        return {name: value for name, value in env.items() if value is not None}

    def command(self, args, ca=None, scale=None, constants=None, wrapper=()):
        """The command line.

        constants are set in the module before it runs; scale is its constant SECOND, which shortens
        every wait and bound.
        """
        run = [str(SCRIPT)]
        constants = dict(constants or {}, **({} if scale is None else {"SECOND": scale}))
        if constants:
            run = ["-c", "import sys; sys.path.insert(0, %r); import letsacme; "
                   "vars(letsacme).update(%r); sys.exit(letsacme.main(sys.argv[1:]))"
                   % (str(TOP), constants)]
        at = ["--ca", ca.directory, "--check-port", str(ca.http_port)] if ca else []
        return [*map(str, wrapper), *interpreter().command, *run, *map(str, args), *at]

    def start(self, *args, ca=None, env=None, scale=None, constants=None, wrapper=(), clock=None,
              cwd=None, **popen):
        """Starts the script without waiting for it; the caller waits or kills (see use of with)."""
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                 "start_new_session": True, **popen}
        return subprocess.Popen(self.command(args, ca, scale, constants, wrapper),
                                cwd=cwd or self.folder, env=self.environment(ca, env, clock),
                                **popen)

    def __call__(self, *args, stdin=None, timeout=120, check=True, **options):
        """Runs the script to its end. ca: a CA to use; check=False: do not judge the output.

        Further options: env (changes to the environment; None unsets), scale and constants (see
        command), wrapper (a command put before), clock (such as "+80d", for libfaketime), cwd, and
        what subprocess.Popen takes.
        """
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*args, **options) as process:
            try:
                out, err = process.communicate(stdin and stdin.encode(), timeout)
            finally:
                end(process)
        out, err = ((text or b"").decode("utf-8", "replace") for text in (out, err))
        if interpreter().version < (3, 13):
            err = LEFT_BY_PYTHON.sub("", err)
        result = Result(process.returncode, out, err)
        if check:
            assert "Traceback" not in err and "Warning:" not in err, err
            assert result.status == 0 or not out, "failed, but printed:\n" + out
        return result


# --- servers -------------------------------------------------------------------------------------

def free_port():
    """A port that is free on both loopbacks, outside the range of outgoing connections."""
    for port in (random.randrange(10000, 30000) for _ in range(1000)):
        try:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                if address == "127.0.0.1" or has_ipv6():
                    with socket.socket(family) as probe:
                        probe.bind((address, port))
            return port
        except OSError:
            continue
    raise AssertionError("no free port")


@functools.cache
def has_ipv6():
    """Does this machine have ::1?"""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


class Server:
    """A process that serves on loopback until it is stopped or the tests die."""

    def __init__(self, command, ports, log, env=None, cwd=None):
        self.log_file = Path(log)
        # The kernel ends the server with the tests, however those end.
        command = ["setpriv", "--pdeathsig", "TERM", *map(str, command)]
        with self.log_file.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=cwd,
                                            stdin=subprocess.DEVNULL, env=env or tools_env())
        try:
            for port in ports:
                self.wait_for(port)
        except BaseException:
            self.stop()
            raise

    @property
    def log(self):
        """What the server has written so far."""
        return self.log_file.read_text(errors="replace")

    def wait_for(self, port):
        """Waits until the server listens on a port."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("server did not start:\n" + self.log)

    def stop(self):
        """Ends the server."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pebble:
    """A Pebble with a DNS server of its own, which says that every name is on loopback.

    Options in capitals (PEBBLE_WFE_NONCEREJECT=50) go to Pebble's environment, others
    (retryAfter={"order": 2}) into its configuration. ipv6 is the AAAA answer of the DNS.
    """

    def __init__(self, folder, http_port, strict=False, ipv6="", **options):
        self.folder, self.http_port = folder, http_port
        self.port, self.management_port = free_port(), free_port()
        self.directory = "https://localhost:%d/dir" % self.port
        ca = trustme.CA()
        self.ca_file = folder / "tls-root.pem"
        ca.cert_pem.write_to_path(self.ca_file)
        ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            folder / "tls.pem")
        (folder / "config.json").write_text(json.dumps({"pebble": self.config(options)}))
        env = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "15"}
        env.update((name, str(value)) for name, value in options.items() if name.isupper())
        dns, control = free_port(), free_port()
        self.dns = Server([tool("pebble-challtestsrv"), "-dnsserver", "127.0.0.1:%d" % dns,
                           "-management", "127.0.0.1:%d" % control, "-defaultIPv4", "127.0.0.1",
                           "-defaultIPv6", ipv6, "-http01", "", "-https01", "", "-tlsalpn01", "",
                           "-doh", ""], [dns, control], folder / "dns.log")
        try:
            self.server = Server(
                [tool("pebble"), "-config", "config.json", "-dnsserver", "127.0.0.1:%d" % dns]
                + ["-strict"] * strict, [self.management_port, self.port], folder / "pebble.log",
                tools_env(**env), folder)
        except BaseException:
            self.dns.stop()
            raise
        self.root = folder / "root.pem"
        self.root.write_bytes(self.management("/roots/0"))

    def config(self, options):
        """Pebble's configuration."""
        config = {"listenAddress": "127.0.0.1:%d" % self.port,
                  "managementListenAddress": "127.0.0.1:%d" % self.management_port,
                  "certificate": "tls.pem", "privateKey": "tls.pem", "httpPort": self.http_port,
                  "tlsPort": free_port(), "retryAfter": {"authz": 0, "order": 0}}
        config.update((name, value) for name, value in options.items() if not name.isupper())
        return config

    def management(self, path, data=None):
        """An answer of Pebble's management interface, such as /intermediates/0; data is posted."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        url = "https://localhost:%d%s" % (self.management_port, path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=context))
        with opener.open(url, data, timeout=30) as answer:
            return answer.read()

    @property
    def log(self):
        """Pebble's log so far."""
        return self.server.log

    @property
    def requests(self):
        """The requests served so far, oldest first, such as 'POST /order-plz'."""
        return re.findall(r"((?:GET|HEAD|POST) /\S*) -> calling handler", self.log)

    def stop(self):
        """Ends Pebble and its DNS."""
        self.server.stop()
        self.dns.stop()


NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/temp1;
    proxy_temp_path {folder}/temp2;
    fastcgi_temp_path {folder}/temp3;
    uwsgi_temp_path {folder}/temp4;
    scgi_temp_path {folder}/temp5;
    server_names_hash_bucket_size 128;

    # Each name has a document root of its own.
    server {{
        {listen}
        root {folder}/sites/$host;
    }}
    # A challenge directory that several names share.
    server {{
        {listen_more}
        server_name ~\\.alias\\.example$;
        location /.well-known/acme-challenge/ {{
            alias {folder}/challenges/;
            try_files $uri =404;
        }}
    }}
    # Challenges are sent to a directory of another host.
    server {{
        {listen_more}
        server_name ~\\.redirect\\.example$;
        rewrite ^/.well-known/acme-challenge/(.*)$
            http://landing.site.example:{port}/challenge/$1 redirect;
    }}
    # Everything is sent to https, where an expired certificate of no known CA waits.
    server {{
        {listen_more}
        server_name ~\\.https\\.example$;
        return 301 https://$host:{tls_port}$request_uri;
    }}
    server {{
        {listen_tls}
        ssl_certificate {folder}/expired.pem;
        ssl_certificate_key {folder}/expired.pem;
        root {folder}/sites/$host;
    }}
}}
"""


class Nginx:
    """An nginx that serves challenge files in the ways that web servers are set up to.

    The end of a host's name says how: NAME.site.example (and any other name or address) has its
    own document root, NAME.alias.example shares the folder `challenges`, NAME.redirect.example
    sends challenges to the document root of landing.site.example, NAME.https.example sends all to
    TLS with an expired certificate.
    """

    def __init__(self, folder):
        self.folder = folder
        folder.chmod(0o755)  # as root, nginx's workers are another user
        self.port, self.tls_port = free_port(), free_port()
        self.challenges = self.folder / "challenges"
        for folder in (self.challenges, self.folder / "sites"):
            folder.mkdir()
        expired = trustme.CA().issue_cert(
            "www.expired.example", not_before=datetime.datetime(2020, 1, 1),
            not_after=datetime.datetime(2020, 2, 1))
        expired.private_key_and_cert_chain_pem.write_to_path(self.folder / "expired.pem")
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(
            folder=self.folder, port=self.port, tls_port=self.tls_port,
            user="user nobody nogroup;" if os.geteuid() == 0 else "",
            listen=self.listen(self.port, " default_server"), listen_more=self.listen(self.port),
            listen_tls=self.listen(self.tls_port, " ssl")))
        self.server = Server([tool("nginx"), "-p", self.folder, "-e", self.folder / "error.log",
                              "-c", config], [self.port, self.tls_port], self.folder / "out.log")

    @staticmethod
    def listen(port, rest=""):
        """The listen lines of a server block."""
        addresses = ["127.0.0.1"] + ["[::1]"] * has_ipv6()
        return " ".join("listen %s:%d%s;" % (address, port, rest) for address in addresses)

    def root(self, name):
        """The document root of a name, made if missing."""
        folder = self.folder / "sites" / name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def landing(self):
        """Where the challenges of NAME.redirect.example end."""
        folder = self.root("landing.site.example") / "challenge"
        folder.mkdir(exist_ok=True)
        return folder

    def stop(self):
        """Ends nginx."""
        self.server.stop()


# --- keys, requests, certificates ----------------------------------------------------------------

KEYS = {
    "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
    "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa4096": lambda: rsa.generate_private_key(65537, 4096),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "encrypted": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def write_key(path, kind):
    """Makes a private key of a kind in KEYS; "encrypted" has a password."""
    lock = serialization.NoEncryption()
    if kind == "encrypted":
        lock = serialization.BestAvailableEncryption(b"password")
    path.write_bytes(KEYS[kind]().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    path.chmod(0o600)
    return path


def load_key(path):
    """The private key in a file."""
    return serialization.load_pem_private_key(Path(path).read_bytes(), None)


def write_csr(path, names=(), key=None, cn=None, critical=False, ips=(), emails=(), extensions=()):
    """Writes a CSR with the given names; extensions are (value, critical) pairs put before."""
    san = [*map(x509.DNSName, names), *map(x509.RFC822Name, emails),
           *(x509.IPAddress(ip_address(ip)) for ip in ips)]
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, cn)] if cn else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    for value, is_critical in extensions:
        builder = builder.add_extension(value, is_critical)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical)
    private = load_key(key)
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    path.write_bytes(builder.sign(private, digest).public_bytes(serialization.Encoding.PEM))
    return path


def load_chain(pem):
    """The certificates in a text, which must hold nothing else."""
    marks = r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n"
    assert re.fullmatch("(%s)+" % marks, pem), "not just certificates in PEM: %r" % pem
    return x509.load_pem_x509_certificates(pem.encode())


def names_of(certificate):
    """The names and addresses of a certificate, as text."""
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(entry.value) for entry in san}


def public_der(key):
    """A public key's bytes, for comparison."""
    return key.public_bytes(serialization.Encoding.DER,
                            serialization.PublicFormat.SubjectPublicKeyInfo)


def check_chain(pem, names, key, root):
    """Checks a certificate with its chain: names, key and signatures up to a root's file.

    Returns the certificates.
    """
    chain = load_chain(pem)
    assert names_of(chain[0]) == {str(name) for name in names}
    assert public_der(chain[0].public_key()) == public_der(load_key(key).public_key())
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for name, certs in (("cert", chain[:1]), ("chain", chain[1:])):
            parts.append(Path(folder, name))
            parts[-1].write_bytes(b"".join(
                cert.public_bytes(serialization.Encoding.PEM) for cert in certs))
        assert parts[1].stat().st_size, "no chain"
        subprocess.run(["openssl", "verify", "-CAfile", root, "-untrusted", parts[1], parts[0]],
                       check=True, capture_output=True)
    return chain


_serial = itertools.count(1)


def fresh_name(kind):
    """A host name that was never used before, for one of nginx's kinds of sites."""
    return "n%d-%x.%s.example" % (next(_serial), random.getrandbits(40), kind)
