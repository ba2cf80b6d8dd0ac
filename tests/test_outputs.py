"""The files that are written: replaced in one step, or refused before the CA is asked."""
import contextlib
import functools
import itertools
import os
import re
import signal
import ssl
import tempfile
import threading
from pathlib import Path

import pki
import pytest
import support
import trials

OPTIONS = {"--cert-file": "cert", "--chain-file": "chain", "--fullchain-file": "both"}
OLD = pki.pem(pki.Issuer().intermediate).decode()
# Put before a command: an ordinary user, who may read all that a test has made as root.
NOBODY, STAFF = 65534, 54321
USER = ["setpriv", "--reuid=%d" % NOBODY, "--regid=%d" % NOBODY, "--groups=%d" % STAFF,
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def out(letsacme):
    """The folder that the outputs go to."""
    folder = letsacme.folder / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def run(letsacme, basics, names, pebble):
    """run(outputs by option, ...) issues a certificate for two new names."""
    def make(outputs, *arguments, **options):
        """A run with these outputs; the result also has the names."""
        hosts = names(2)
        words = [word for option in outputs.items() for word in option]
        result = letsacme(*basics(hosts), *words, *arguments, ca=pebble, **options)
        result.hosts = hosts
        return result
    return make


@pytest.fixture
def check(key, pebble):
    """check(path, result, part) checks what a run has written."""
    def make(path, result, part="both"):
        """The file is a new certificate, its chain, or both."""
        assert result.status == 0, result.err
        chain = pebble.management("/intermediates/0").decode()
        text = path.read_text()
        if part == "chain":
            assert pki.load_chain(text) == pki.load_chain(chain)
        else:
            assert len(pki.load_chain(text)) == (1 if part == "cert" else 2)
            pki.check_chain(text + chain * (part == "cert"), result.hosts, key(), pebble.root)
    return make


# --- written in one step --------------------------------------------------------------------------

@pytest.mark.core
def test_replaced_in_one_step(run, check, out):
    """Whoever has an old file open keeps reading all of it: each output is another file now."""
    outputs = {option: out / part for option, part in OPTIONS.items()}
    for path in outputs.values():
        path.write_text(OLD)
        os.link(path, "%s.old" % path)
    result = run(outputs)
    assert result.out == ""
    for path in outputs.values():
        check(path, result, path.name)
        assert (out / (path.name + ".old")).read_text() == OLD
    assert len(list(out.iterdir())) == 6, "something is left: %s" % list(out.iterdir())
    assert "W:" not in result.err


def test_new_files(run, check, out):
    """Outputs that are not there yet are made; stdout gets what it would without them."""
    outputs = {option: out / part for option, part in OPTIONS.items()
               if option != "--fullchain-file"}
    result = run(outputs)
    for path in outputs.values():
        check(path, result, path.name)
    assert result.out == (out / "cert").read_text() + (out / "chain").read_text()


@pytest.mark.parametrize("flag, part", [("--no-chain", "cert"), ("--no-cert", "chain")])
def test_flags_for_stdout_only(flag, part, run, check, out):
    """--no-chain and --no-cert say what is printed, not what the files hold."""
    outputs = {option: out / part for option, part in OPTIONS.items()}
    result = run(outputs, flag)
    assert result.out == ""
    for path in outputs.values():
        check(path, result, path.name)
    del outputs["--fullchain-file"]
    result = run(outputs, flag)
    assert result.out == (out / part).read_text()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_mode_is_kept(mode, run, check, out):
    """A new version has the mode of the old, whatever the umask."""
    path = out / "both"
    path.write_text(OLD)
    path.chmod(mode)
    result = run({"--fullchain-file": path}, umask=0o027)
    check(path, result)
    assert path.stat().st_mode & 0o7777 == mode


@as_root
def test_owner_is_kept(run, check, out):
    """A file of another user stays his."""
    path = out / "both"
    path.write_text(OLD)
    os.chown(path, NOBODY, STAFF)
    result = run({"--fullchain-file": path})
    check(path, result)
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, STAFF)
    assert "W:" not in result.err


@pytest.mark.parametrize("target", ["real/both", "../out/real/both", "{out}/real/both", "another",
                                    "real/new"])
def test_link_is_kept(target, run, check, out):
    """A symbolic link, or a link to a link, stays one, and the file it names changes."""
    (out / "real").mkdir()
    (out / "real/both").write_text(OLD)
    (out / "another").symlink_to("real/both")
    target = target.format(out=out)
    link = out / "live"
    link.symlink_to(target)
    result = run({"--fullchain-file": link})
    check(link, result)
    assert os.readlink(link) == target and os.readlink(out / "another") == "real/both"
    assert sorted(path.name for path in out.iterdir()) == ["another", "live", "real"]
    assert target == "real/new" or not (out / "real/both").read_text() == OLD


def test_relative_paths(run, check, out):
    """Relative paths start where the script runs, with and without a folder."""
    result = run({"--fullchain-file": "both", "--cert-file": "../out/cert"}, cwd=out)
    check(out / "both", result)
    check(out / "cert", result, "cert")


# --- where only the files may be written ----------------------------------------------------------

@pytest.mark.core
def test_in_place(run, check, out):
    """In a folder that may not be written, the files are overwritten, with a warning."""
    outputs = {option: out / part for option, part in OPTIONS.items()}
    for count, path in zip((0, 1, 200), outputs.values()):
        path.write_text(OLD * count)
        path.chmod(0o640)
    numbers = [path.stat().st_ino for path in outputs.values()]
    out.chmod(0o555)
    result = run(outputs, wrapper=support.UNPRIVILEGED)
    assert [path.stat().st_ino for path in outputs.values()] == numbers
    assert result.out == ""
    for path in outputs.values():
        check(path, result, path.name)
        assert path.stat().st_mode & 0o777 == 0o640
        assert re.search("^W: .*%s" % re.escape(str(path)), result.err, re.M)


def test_in_place_behind_a_link(run, check, out):
    """What counts is the folder of the file that a link names, not the folder of the link."""
    (out / "real").mkdir()
    (out / "real/both").write_text(OLD)
    (out / "real").chmod(0o555)
    (out / "live").symlink_to("real/both")
    result = run({"--fullchain-file": out / "live"}, wrapper=support.UNPRIVILEGED)
    check(out / "live", result)
    assert (out / "live").is_symlink()


@pytest.fixture
def user(trial):
    """A Trial as an ordinary user, whose directory `out` is; put(name, ...) is an old output."""
    with tempfile.TemporaryDirectory(prefix="letsacme-outputs-") as folder:
        trial.site = Path(folder)       # since pytest's own may not be entered
        trial.site.chmod(0o755)
        trial.challenges, trial.out = trial.site / "challenges", trial.site / "out"
        for path in (trial.challenges, trial.out):
            path.mkdir()
            os.chown(path, NOBODY, NOBODY)
        trial.options.update({"--cert-file": None, "--chain-file": None,
                              "--acme-dir": trial.challenges})
        trial.put = functools.partial(put, trial.out)
        yield trial


def put(out, name, mode=0o644, uid=NOBODY, gid=NOBODY):
    """Put an old output there."""
    path = out / name
    path.write_text(OLD)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


@as_root
@pytest.mark.parametrize("mode, uid, gid, in_place", [
    (0o640, NOBODY, NOBODY, False), (0o640, NOBODY, STAFF, False),
    pytest.param(0o640, NOBODY, 0, True, marks=pytest.mark.core), (0o660, 0, NOBODY, True),
    (0o666, 0, 0, True)])
def test_owner_and_group_that_cannot_be_given(mode, uid, gid, in_place, user):
    """A web server would lose its certificate at the next reload: so the file is overwritten."""
    path = user.put("cert", mode, uid, gid)
    before = path.stat()
    result = user.works(args={"--cert-file": path}, wrapper=USER, changed=["out/cert"])
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, uid, gid)
    assert (after.st_ino == before.st_ino) == in_place
    assert bool(re.search("^W: .*%s" % re.escape(str(path)), result.err, re.M)) == in_place
    assert pki.load_chain(path.read_text()) != pki.load_chain(OLD)


@as_root
@pytest.mark.parametrize("wrapper", [support.UNPRIVILEGED, ["setpriv", "--bounding-set=-chown"]],
                         ids=["none", "all but one"])
def test_root_without_its_powers(wrapper, user):
    """A service manager may have taken them away: then root cannot give files away either."""
    for path in (user.out, user.challenges):
        os.chown(path, 0, 0)
    path = user.put("cert", 0o660, 0, STAFF)
    result = user.works(args={"--cert-file": path}, wrapper=wrapper, changed=["out/cert"])
    assert path.stat().st_gid == STAFF and "W: " in result.err


@as_root
@pytest.mark.parametrize("mode", [pytest.param(0o644, marks=pytest.mark.core), 0o666], ids=oct)
def test_sticky_directory(mode, user):
    """Nobody else's file can be replaced there: it is overwritten, or nothing is done at all."""
    os.chown(user.out, 0, 0)
    user.out.chmod(0o1777)
    mine, other = user.put("cert"), user.put("chain", mode, 0, 0)
    args = {"--cert-file": mine, "--chain-file": other}
    if mode == 0o666:
        user.works(args=args, wrapper=USER, changed=["out/cert", "out/chain"])
        assert len(pki.load_chain(mine.read_text() + other.read_text())) == 2
        assert OLD not in (mine.read_text(), other.read_text()) and other.stat().st_uid == 0
    else:
        assert not user.fails(None, str(other), args=args, wrapper=USER).ca.connections


@contextlib.contextmanager
def swapping(path, target):
    """A link to a target takes the place of a file, and again the file, as fast as can be."""
    ended = threading.Event()
    old = path.stat()

    def swap():
        """Until it has ended."""
        new = path.parent.parent / "swap"
        while not ended.is_set():
            new.symlink_to(target)
            new.rename(path)
            new.write_text(OLD)
            os.chown(new, old.st_uid, old.st_gid)
            new.chmod(old.st_mode)
            new.rename(path)
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@as_root
@pytest.mark.parametrize("in_place", [True, False])
def test_a_link_is_planted(in_place, user):
    """A link that was not there at the start is not followed: what it leads to stays as it is."""
    path = user.put("cert", 0o666)
    victim = user.put("victim", 0o666)
    if in_place:
        os.chown(user.out, 0, 0)

    def plant(request, reply):
        """Put it there when all has been looked at."""
        path.unlink()
        path.symlink_to(victim)
    run = {"args": {"--cert-file": path}, "wrapper": USER, "changed": ["out/cert"]}
    if in_place:
        user.fails({"certificate": plant}, str(path), **run)
    else:
        user.works({"certificate": plant}, **run)
    assert path.is_symlink() == in_place and victim.read_text() == OLD


@as_root
def test_a_link_is_planted_in_a_race(user):
    """Nor is one that comes and goes while the file is written."""
    path, victim = user.put("cert", 0o666), user.put("victim", 0o666)
    os.chown(user.out, 0, 0)
    for _ in range(10):
        with contextlib.ExitStack() as stack:
            def plant(request, reply):
                """From the last answer on."""
                stack.enter_context(swapping(path, victim))
            with user.serve({"certificate": plant}) as ca:
                result = user.letsacme(*user.arguments({"--cert-file": path}), ca=ca,
                                       wrapper=USER)
        assert victim.read_text() == OLD
        assert bool(trials.refusals(result.err)) == (result.status != 0)


# --- a full disk, a sudden end --------------------------------------------------------------------

# A disk that has room for one output, but not for another one.
FULL = """
mount -t tmpfs -o size=12k,mode=755 tmpfs "$1" && cp "$1"/../chain.pem "$1" &&
head -c 4096 /dev/zero > "$1/fill" && cd "$1" && shift && "$@"
status=$?
cmp ../chain.pem chain.pem && [ "$(ls)" = "$(printf 'chain.pem\\nfill')" ] || status=99
exit $status
"""


def test_a_full_disk(trial):
    """The error names the output that had no room; all are left as they were."""
    (trial.site / "disk").mkdir()
    result = trial.fails(None, args={"--cert-file": trial.site / "disk/cert.pem",
                                     "--chain-file": trial.site / "disk/chain.pem"},
                         wrapper=[*trials.OWN_MOUNTS,
                                  *support.shell(FULL, trial.site / "disk")])
    [error] = trials.refusals(result.err)
    assert re.search("/disk/chain.pem.*No space", error) and "https:" not in error


DEADLY = """
import os, signal
moments = []
def deadly(function):
    def moment():
        moments.append(1)
        if len(moments) == int(os.environ["DEADLY"]):
            os.kill(os.getpid(), signal.SIGKILL)
    def call(*args, **options):
        moment()
        try:
            return function(*args, **options)
        finally:
            moment()
    return call
for name in ("fsync", "rename", "replace", "fchown", "truncate"):
    setattr(os, name, deadly(getattr(os, name)))
"""


@pytest.mark.core
def test_kill_9(trial, tmp_path):
    """Before and after each step of writing: every output is the old one or the new one."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    ends = []
    with trial.serve() as ca:
        for moment in itertools.count(1):
            for path in (trial.cert, trial.chain):
                path.write_text(OLD)
            result = trial.letsacme(*trial.arguments(), ca=ca, scale=0.05, check=False, env={
                "PYTHONPATH": str(tmp_path), "DEADLY": str(moment)})
            states = [path.read_text() == OLD for path in (trial.cert, trial.chain)]
            assert len(pki.load_chain(trial.cert.read_text())) == 1
            assert len(pki.load_chain(trial.chain.read_text())) == 1
            if result.status != -signal.SIGKILL:
                break
            ends.append(states)
    assert (result.status, states) == (0, [False, False]), result.err
    assert ends[0] == [True, True] and [False, True] in ends


# --- refused --------------------------------------------------------------------------------------

def content(folder):
    """All files of a folder with their contents, links and numbers."""
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns, path.is_symlink(),
                   path.is_file() and path.stat().st_mode & 0o400 and path.read_bytes())
            for path in folder.rglob("*") if path.name != "hosts"}     # which is support's


def locked(path):
    """A path that can neither be written nor be replaced."""
    path.mkdir()
    (path / "file").write_text(OLD)
    (path / "file").chmod(0o444)
    path.chmod(0o555)


def holding(*makers):
    """A function that puts a file there: texts, and what functions of a path write to it."""
    def make(path):
        parts = []
        for maker in makers:
            if callable(maker):
                maker(path)
            parts.append(path.read_bytes() if callable(maker) else maker.encode())
        path.write_bytes(b"".join(parts))
    return make


def key_in_der(path):
    """A private key as DER."""
    path.write_bytes(pki.new_key().private_bytes(
        pki.DER, pki.serialization.PrivateFormat.PKCS8, pki.PLAIN))


def key_in_pem(path):
    """A private key as PEM."""
    pki.write_key(path, "p256")


SITUATIONS = {
    "folder is missing": ({"--cert-file": "missing/cert"}, None),
    "folder is a file": ({"--cert-file": "x/cert"}, lambda path: path.write_text(OLD)),
    "a folder": ({"--chain-file": "x"}, lambda path: path.mkdir()),
    "link to a folder": ({"--chain-file": "x"}, lambda path: path.symlink_to("..")),
    "link to nowhere": ({"--chain-file": "x"}, lambda path: path.symlink_to("missing/chain")),
    "pipe": ({"--fullchain-file": "x"}, os.mkfifo),
    "new file in locked folder": ({"--fullchain-file": "x/new"}, locked),
    "locked file in locked folder": pytest.param(
        {"--fullchain-file": "x/file"}, locked, marks=pytest.mark.core),
    "unreadable": ({"--fullchain-file": "x"}, lambda path: path.touch(0o200)),
    "twice": ({"--cert-file": "same", "--chain-file": "same"}, None),
    "twice, other words": ({"--cert-file": "same", "--fullchain-file": "../out/./same"}, None),
    "twice by a link": ({"--cert-file": "same", "--fullchain-file": "x"},
                        lambda path: path.symlink_to("same")),
    "account key": pytest.param(
        {"--cert-file": "../account.key"}, None, marks=pytest.mark.core),
    "account key by a link": ({"--fullchain-file": "x"},
                              lambda path: path.symlink_to("../account.key")),
    "CSR": ({"--fullchain-file": "../the.csr"}, None),
    "configuration": pytest.param(
        {"--fullchain-file": "../config.json"}, None, marks=pytest.mark.core),
    "configuration by a link": ({"--fullchain-file": "x"},
                                lambda path: path.symlink_to("../config.json")),
    "key in DER": ({"--cert-file": "x"}, key_in_der),
    "certificate and key": pytest.param(
        {"--cert-file": "x"}, holding(OLD, key_in_pem), marks=pytest.mark.core),
    "key and certificate": ({"--cert-file": "x"}, holding(key_in_pem, OLD)),
    "private key by a link": ({"--cert-file": "x"}, lambda path: path.symlink_to(
        pki.write_key(path.parent / "domain.key", "rsa2048"))),
    "text": ({"--chain-file": "x"}, holding("dear diary\n")),
    "text before a certificate": ({"--chain-file": "x"}, holding("Certificate:\n", OLD)),
    "text after a certificate": ({"--chain-file": "x"}, holding(OLD, "the end")),
    "a certificate in DER": ({"--chain-file": "x"}, lambda path: path.write_bytes(
        ssl.PEM_cert_to_DER_cert(OLD))),
}


@pytest.mark.parametrize("outputs, prepare", SITUATIONS.values(), ids=SITUATIONS)
def test_refused(outputs, prepare, letsacme, basics, names, nginx, pebble, out):
    """An output that cannot be, or would destroy something else, is refused before any order."""
    if prepare:
        prepare(out / "x")
    [host] = names()
    arguments = basics([host])
    arguments[3] = arguments[3].rename(letsacme.folder / "the.csr")
    arguments[5] = arguments[5].rename(letsacme.folder / "config.json")
    words = [word for option in outputs.items() for word in option]
    before, served = content(letsacme.folder), len(pebble.requests)
    result = letsacme(*arguments, *words, ca=pebble, cwd=out, wrapper=support.UNPRIVILEGED)
    assert result.status == 1
    told = re.findall("^E: (.*)$", result.err, re.M)
    path = list(outputs.values())[-1]
    assert len(told) == 1 and (path in told[0] or os.path.realpath(out / path) in told[0])
    assert content(letsacme.folder) == before
    assert pebble.requests[served:] == [] and not list(nginx.root(host).iterdir())


@pytest.mark.core
def test_untouched_by_a_failure(letsacme, basics, names, pebble, out):
    """A run that fails leaves all outputs as they are, and makes none."""
    for name in ("cert", "both"):
        (out / name).write_text(OLD)
    outputs = [word for option, part in OPTIONS.items() for word in (option, out / part)]
    [host] = names()
    before = content(out)
    result = letsacme(*basics([host]), "--acme-dir", out, "--config-json", "{}", *outputs,
                      "--disable-check", ca=pebble)
    assert result.status == 1
    assert re.search("^E: .*%s: " % host, result.err, re.M)
    assert content(out) == before


def test_other_line_ends(run, check, out):
    """Blank lines and carriage returns between certificates are no reason to refuse a file."""
    (out / "both").write_text("\r\n\n" + OLD.replace("\n", "\r\n") + "\n \n" + OLD, newline="")
    result = run({"--fullchain-file": out / "both"})
    check(out / "both", result)
