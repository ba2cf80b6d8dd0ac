"""The files that are written: replaced in one step, or refused before the CA is asked."""
import functools
import os
import re
import ssl
import tempfile
from pathlib import Path

import pki
import pytest
import support
import trials
from trials import OLD

core = pytest.mark.core
# Put before a command: an ordinary user, who may read all that a test has made as root.
NOBODY, STAFF = 65534, 54321
USER = ["setpriv", "--reuid=%d" % NOBODY, "--regid=%d" % NOBODY, "--groups=%d" % STAFF,
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def outputs(trial):
    """The paths of all three outputs of the trial, which are there before."""
    both = trial.site / "both.pem"
    both.write_bytes(OLD)
    trial.options["--fullchain-file"] = both
    return [trial.cert, trial.chain, both]


def check(outputs):
    """The outputs are new, and hold what they are to hold."""
    cert, chain, both = [path.read_bytes() for path in outputs]
    assert both == cert + chain and OLD not in (cert, chain)
    assert [len(pki.load_chain(part.decode())) for part in (cert, chain)] == [1, 1]


def warned_of(result, path):
    """Did a run warn that it has overwritten this file?"""
    return bool(re.search("^W: .*%s" % re.escape(str(path)), result.err, re.M))


# ---- Written in one step

@core
def test_replaced_in_one_step(trial, outputs):
    """Who has an old file open keeps reading all of it; the new one has its mode and its owner."""
    for path, mode in zip(outputs, (0o600, 0o640, 0o444)):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, STAFF)
        path.chmod(mode)
        os.link(path, path.with_suffix(".old"))
    result = trial.works(changed=["both.pem"], umask=0o027)
    check(outputs)
    for path in outputs:
        old, new = path.with_suffix(".old"), path.stat()
        assert old.read_bytes() == OLD and old.stat().st_ino != new.st_ino
        assert all(getattr(old.stat(), part) == getattr(new, part)
                   for part in ("st_mode", "st_uid", "st_gid"))
    assert result.out == "" and "W:" not in result.err


def test_new_files(trial):
    """Outputs that are not there yet are made; they hold what flags keep from being printed."""
    trial.cert.unlink()
    trial.chain.unlink()
    result = trial.works(args={"--no-cert": True})
    assert result.out == trial.chain.read_text() and len(pki.load_chain(result.out)) == 1


def test_links_are_kept(trial):
    """A link to a link, and one to a file that is not there yet; the files they name change."""
    (trial.site / "real").mkdir()
    (trial.site / "real/old").write_bytes(OLD)
    targets = {"cert.pem": "another", "another": "real/old", "chain.pem": "real/new"}
    for name, target in targets.items():
        (trial.site / name).unlink(missing_ok=True)
        (trial.site / name).symlink_to(target)
    trial.works(changed=["real/old", "real/new"])
    assert {name: os.readlink(trial.site / name) for name in targets} == targets


# ---- Where only the files may be written

@core
def test_in_place(trial, outputs):
    """In a folder that may not be written, be it behind a link, files are overwritten, with a
    warning, whatever their length was."""
    folder = trial.site / "locked"
    folder.mkdir()
    files = [folder / path.name for path in outputs]
    for count, path, file in zip((0, 1, 200), outputs, files):
        path.unlink()
        path.symlink_to(file)
        file.write_bytes(OLD * count)
        file.chmod(0o640)
    folder.chmod(0o555)
    before = [(path.stat().st_ino, path.stat().st_mode) for path in files]
    changed = [str(path.relative_to(trial.site)) for path in outputs + files]
    result = trial.works(changed=changed, wrapper=support.UNPRIVILEGED)
    check(outputs)
    assert [(path.stat().st_ino, path.stat().st_mode) for path in files] == before
    assert all(warned_of(result, path) for path in files)


def test_a_mounted_file(trial):
    """As in a container: nothing can take its place, so it is overwritten."""
    path = trial.site / "my cert.pem"
    path.write_bytes(OLD)
    script = 'mount --bind "$1" "$1" && shift && "$@"'
    result = trial.works(args={"--cert-file": path}, changed=[path.name],
                         wrapper=trials.OWN_MOUNTS + support.shell(script, path))
    assert warned_of(result, path) and not warned_of(result, trial.chain)


@pytest.fixture
def user(trial):
    """A Trial as an ordinary user, whose directory `out` is; put(name, ...) is an old output."""
    def put(name, mode=0o644, uid=NOBODY, gid=NOBODY):
        path = trial.out / name
        path.write_bytes(OLD)
        os.chown(path, uid, gid)
        path.chmod(mode)
        return path
    with tempfile.TemporaryDirectory(prefix="letsacme-outputs-") as folder:
        trial.site = Path(folder)       # since pytest's own may not be entered
        trial.site.chmod(0o755)
        trial.challenges, trial.out, trial.put = trial.site / "challenges", trial.site / "out", put
        for path in (trial.challenges, trial.out):
            path.mkdir()
            os.chown(path, NOBODY, NOBODY)
        trial.options.update({"--cert-file": None, "--chain-file": None,
                              "--acme-dir": trial.challenges})
        yield trial


@as_root
@core
def test_owner_and_group_that_cannot_be_given(user):
    """A web server would lose its certificate at the next reload: so the file is overwritten."""
    cases = {user.put("mine", 0o640, NOBODY, STAFF): False,
             user.put("group", 0o640, NOBODY, 0): True, user.put("owner", 0o660, 0, NOBODY): True}
    before = [path.stat() for path in cases]
    args = dict(zip(("--cert-file", "--chain-file", "--fullchain-file"), cases))
    result = user.works(args=args, wrapper=USER, changed=["out/" + path.name for path in cases])
    check(cases)
    for (path, in_place), old in zip(cases.items(), before):
        new = path.stat()
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
        assert (new.st_ino == old.st_ino) == in_place == warned_of(result, path)


@as_root
@pytest.mark.parametrize("wrapper, folder, mode, ids", [
    (support.UNPRIVILEGED, 0o755, 0o660, (0, STAFF)), (USER, 0o1777, 0o666, (0, 0))],
    ids=["root without its powers", "another's file in a sticky folder"])
def test_overwritten(wrapper, folder, mode, ids, user):
    """A service manager may have taken root's powers away: then it cannot give files away either;
    and a sticky folder does not let others replace what is in it."""
    for path in (user.out, user.challenges):
        os.chown(path, 0, 0)
    user.out.chmod(folder)
    user.challenges.chmod(0o777)
    path = user.put("cert", mode, *ids)
    result = user.works(args={"--cert-file": path}, wrapper=wrapper, changed=["out/cert"])
    new = path.stat()
    assert (new.st_mode & 0o777, new.st_uid, new.st_gid) == (mode, *ids) and warned_of(result, path)


@as_root
def test_not_even_overwritten(user):
    """Nothing is done at all where one output cannot be written."""
    os.chown(user.out, 0, 0)
    user.out.chmod(0o1777)
    args = {"--cert-file": user.put("cert"), "--chain-file": user.put("chain", 0o644, 0, 0)}
    user.refused("/chain", args=args, wrapper=USER)


@as_root
@pytest.mark.parametrize("in_place", [True, False])
def test_a_link_is_planted(in_place, user):
    """A link that was not there at the start is not followed: what it leads to stays as it is."""
    path, victim = user.put("cert", 0o666), user.put("victim", 0o666)
    if in_place:
        os.chown(user.out, 0, 0)

    def plant(request, reply):
        path.unlink()
        path.symlink_to(victim)
    run = {"args": {"--cert-file": path}, "wrapper": USER, "changed": ["out/cert"]}
    if in_place:
        user.fails({"certificate": plant}, str(path), **run)
    else:
        user.works({"certificate": plant}, **run)
    assert path.is_symlink() == in_place and victim.read_bytes() == OLD


# ---- A full disk (for a sudden end, see test_crashes.py)

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
    disk = trial.site / "disk"
    disk.mkdir()
    result = trial.fails(
        None, args={"--cert-file": disk / "cert.pem", "--chain-file": disk / "chain.pem"},
        wrapper=trials.OWN_MOUNTS + support.shell(FULL, disk))
    error = trials.error_of(result)
    assert re.search("/disk/chain.pem.*No space", error) and "https:" not in error


# ---- Refused

def locked(path):
    """A folder that may not be written, with a file that may not be written either."""
    path.mkdir()
    (path / "file").write_bytes(OLD)
    (path / "file").chmod(0o444)
    path.chmod(0o555)


# Options, and what makes x.
SITUATIONS = {
    "link to nowhere": ({"--chain-file": "x"}, lambda path: path.symlink_to("missing/chain")),
    "a folder by a link": ({"--chain-file": "x"}, lambda path: path.symlink_to("..")),
    "pipe": ({"--fullchain-file": "x"}, os.mkfifo),
    "new file in locked folder": ({"--fullchain-file": "x/new"}, locked),
    "locked file in locked folder": ({"--fullchain-file": "x/file"}, locked),
    "unreadable": ({"--fullchain-file": "x"}, lambda path: path.touch(0o200)),
    "twice by a link": ({"--cert-file": "cert.pem", "--fullchain-file": "x"},
                        lambda path: path.symlink_to("cert.pem")),
    "key": ({"--cert-file": "x"}, lambda path: pki.write_key(path, "p256")),
}


@pytest.mark.parametrize("args, prepare", SITUATIONS.values(), ids=SITUATIONS)
def test_refused(args, prepare, trial):
    """An output that cannot be, or would destroy something else, is refused before any order."""
    prepare(trial.site / "x")
    result = trial.refused(args=args, cwd=trial.site, wrapper=support.UNPRIVILEGED)
    path = list(args.values())[-1]
    assert os.path.realpath(trial.site / path) in trials.error_of(result)


def test_what_may_be_overwritten(tmp_path):
    """Certificates, perhaps cut, with blank lines and other line ends; but nothing else."""
    key = pki.write_key(tmp_path / "key", "p256").read_bytes()
    csr = pki.write_csr(tmp_path / "csr", ["a.example"], tmp_path / "key").read_bytes()
    fits = functools.partial(re.fullmatch, support.module().CERTIFICATES)
    for data in (b"", OLD, OLD * 3, b"\r\n\n" + OLD.replace(b"\n", b"\r\n") + b"\n \n" + OLD,
                 *(OLD + OLD[:length] for length in range(len(OLD)))):
        assert fits(data), data
    for data in (key, csr, OLD + key, key + OLD, b"dear diary\n", b"Certificate:\n" + OLD, b"{}",
                 OLD + b"the end", ssl.PEM_cert_to_DER_cert(OLD.decode())):
        assert not fits(data), data
