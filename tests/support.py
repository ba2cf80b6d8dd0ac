"""What every test stands on: the programs it needs, and letsacme.py as a process of its own.

Programs come from the tools folder that `sh tests/run.sh` fills, or else from PATH.
"""
import collections
import contextlib
import functools
import glob
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

TOP = Path(__file__).resolve().parent.parent
SCRIPT = Path(os.environ.get("LETSACME_SCRIPT") or TOP / "letsacme.py")
TOOLS = Path(os.environ.get("LETSACME_TOOLS") or TOP / ".tools")
# Put before a command: root without any capability is an ordinary user who owns root's files.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
# What the script waits for, in seconds, which tests shorten
WAITS = {"ANSWER_TIMEOUT": 40, "REQUEST_PATIENCE": 120, "WORK_PATIENCE": 600, "DOUBT_PATIENCE": 10,
         "LONGEST_RUN": 3600, "FIRST_PAUSE": 0.25, "SLOW_AFTER": 4, "LONGEST_PAUSE": 5,
         "LONGEST_POLL_PAUSE": 30}
# What Python says to programmers, and nobody else is to read
PYTHONS_WORDS = re.compile(
    r"\w(Error|Exception|Warning)\b|Errno|_ssl\.c|<class|<[a-z.]+ object|object has no|NoneType|"
    r"subscriptable|iterable|expected (at|one|a|str)|to unpack|list index|out of range|literal for|"
    r"codec can't|Expecting|Extra data|char \d|does not match format|not supported between|"
    r"must be (str|int|bytes)|positional|unhashable|\b[bu]'")


def search_path(*parts):
    """A PATH of these parts."""
    return os.pathsep.join(map(str, parts))


def tool(name):
    """The path of a program, from the tools folder or the machine; a missing one is an error."""
    found = shutil.which(name, path=search_path(
        TOOLS / "wrapped", TOOLS / "usr/bin", TOOLS / "usr/sbin", os.environ["PATH"], "/usr/sbin"))
    assert found, "%s is missing: 'sh tests/run.sh' fetches all that the tests need" % name
    return found


def library(name):
    """The path of a shared library, from the tools folder or the machine; see tool."""
    for folder in (TOOLS / "usr/lib/*-linux-*", "/usr/lib/*-linux-*", "/usr/lib64", "/usr/lib"):
        for path in glob.glob("%s/%s" % (folder, name)):
            return path
    raise AssertionError("%s is missing: 'sh tests/run.sh' fetches it" % name)


def tools_env(**more):
    """The environment for unpacked programs: their libraries lie beside them."""
    return dict(os.environ, **more,
                LD_LIBRARY_PATH=search_path(*TOOLS.glob("usr/lib/*-linux-*")))


# A Python that letsacme.py is tested with: its word in LETSACME_PYTHON, the command that starts it
# (every warning being an error), and the folder of its openssl if it has its own
Interpreter = collections.namedtuple("Interpreter", "word command name version openssl")
# What pyenv puts on PATH are slow scripts: go round them, to the Pythons themselves.
PYTHONS = search_path(
    *(part for part in os.environ["PATH"].split(os.pathsep) if not part.endswith("/shims")),
    TOOLS / "wrapped",
    *sorted(glob.glob(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
                      + "/versions/*/bin")))
# Names or paths, each perhaps with + and a folder of tools
WANTED = os.environ.get("LETSACME_PYTHON", "").split() or [sys.executable]


@functools.cache
def interpreters():
    """Those of the wanted interpreters that are on this machine."""
    ask = "import platform as p; print(p.python_implementation(), p.python_version())"
    found = []
    for word in WANTED:
        name, _, openssl = word.partition("+")
        command = (shutil.which(name, path=PYTHONS) or "false", "-W", "error")
        answer = subprocess.run([*command, "-c", ask], capture_output=True, text=True)
        if answer.returncode == 0 and (not openssl or (TOOLS / openssl / "openssl").exists()):
            name = answer.stdout.strip()
            version = tuple(map(int, re.findall(r"\d+", name)[:2]))
            found.append(Interpreter(word, command, name, version, openssl))
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


def fake_openssl(folder, script):
    """An environment in which openssl is a shell script; $real is the real one."""
    folder.mkdir()
    real = shutil.which("openssl", path=script_path())
    (folder / "openssl").write_text("#!/bin/sh\nreal=%s\n%s\n" % (real, script))
    (folder / "openssl").chmod(0o755)
    return {"PATH": search_path(folder, script_path())}


def shell(script, *words):
    """Put before a command: a shell script whose "$@" is that command, after words of its own."""
    return ["sh", "-c", script, "sh", *map(str, words)]


def module():
    """letsacme.py as a module of this process."""
    sys.path.insert(0, str(SCRIPT.parent))
    return importlib.import_module("letsacme")


def fresh_name(kind):
    """A host name that was never used before, for one of nginx's kinds of sites."""
    return "n%d-%x.%s.example" % (os.getpid(), time.monotonic_ns(), kind)


# Before Python 3.13, the ssl module leaves a socket unclosed where the other side has reset the
# connection before the handshake (such a socket has no raddr). That is no fault of the script.
LEFT_BY_PYTHON = re.compile(
    r"Exception ignored in: <ssl\.SSLSocket.*\nTraceback.*\n(?:  .*\n)+"
    r"ResourceWarning: unclosed <ssl\.SSLSocket (?:(?!raddr).)*>\n")


def judge_words(err):
    """No word of Python's is in a log."""
    assert "Traceback" not in err and "Warning:" not in err, err
    for line in re.findall("^[EW]: .*", err, re.M):
        assert not PYTHONS_WORDS.search(line), line


def end(process):
    """Ends a process that was started in a session of its own, with what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Letsacme:
    """Runs letsacme.py, as a process of its own, in a folder of the test's own."""

    def __init__(self, folder):
        self.folder = folder
        self.hosts = folder / "hosts"

    def add_host(self, name):
        """Lets the script's own look-ups (see environment) find a name, which it returns."""
        known = self.hosts.read_text() if self.hosts.exists() else "127.0.0.1 localhost\n"
        self.hosts.write_text("%s127.0.0.1 %s\n" % (known, name))
        return name

    def environment(self, ca=None, more=None, clock=None):
        """What the script finds in its environment: little, like a cron job."""
        env = {"PATH": script_path(), "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1",
               "NSS_WRAPPER_HOSTS": str(self.hosts), "FAKETIME": clock,
               "SSL_CERT_FILE": str(ca.ca_file) if ca else None}
        preload = [library("libnss_wrapper.so")] if self.hosts.exists() else []
        preload += [library("faketime/libfaketime.so.1")] if clock else []
        env = {**env, "LD_PRELOAD": " ".join(preload) or None, **(more or {})}
        return {name: value for name, value in env.items() if value is not None}

    def start(self, *args, ca=None, env=None, scale=None, constants=None, wrapper=(), clock=None,
              cwd=None, stdin=subprocess.DEVNULL, **popen):
        """Starts the script without waiting for it; see __call__ for the options."""
        run = [str(SCRIPT)]
        shorter = {name: seconds * scale for name, seconds in WAITS.items() if scale}
        constants = {**shorter, **(constants or {})}
        if constants:
            run = ["-c", "import sys; sys.path.insert(0, %r); import letsacme; "
                   "vars(letsacme).update(%r); sys.exit(letsacme.main(sys.argv[1:]))"
                   % (str(SCRIPT.parent), constants)]
        at = ["--ca", ca.directory, "--check-port", ca.http_port] if ca else []
        command = map(str, [*wrapper, *interpreter().command, *run, *args, *at])
        return subprocess.Popen([*command], cwd=cwd or self.folder, start_new_session=True,
                                env=self.environment(ca, env, clock), stdin=stdin,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)

    def __call__(self, *args, timeout=120, **options):
        """Runs the script to its end; gives its status, out and err.

        ca: a CA to use; env: changes to the environment (None unsets); constants are set in the
        module before it runs, and scale shortens all its waits; wrapper: a command put before;
        clock: such as "+80d", for libfaketime; and what Popen takes.
        """
        with self.start(*args, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                end(process)
        # What libfaketime leaves behind after an exec or a sudden end
        for name in ("faketime_shm_%d", "sem.faketime_sem_%d") if options.get("clock") else ():
            Path("/dev/shm", name % process.pid).unlink(missing_ok=True)
        out, err = (text.decode("utf-8", "replace") for text in (out, err))
        if interpreter().version < (3, 13):
            err = LEFT_BY_PYTHON.sub("", err)
        judge_words(err)
        assert process.returncode == 0 or not out, "failed, but printed:\n" + out
        return SimpleNamespace(status=process.returncode, out=out, err=err)
