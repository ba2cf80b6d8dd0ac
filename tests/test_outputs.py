"""The files that are written: replaced in one step, or refused before the CA is asked."""
import os
import re
import ssl
import stat
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
WARNING = "W: %s is overwritten, "
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def outputs(trial):
    """The paths of all three outputs of the trial, which are there before."""
    both = trial.site / "both.pem"
    both.write_bytes(OLD)
    trial.options["--fullchain-file"] = both
    return [trial.cert, trial.chain, both]


def check(cert, chain, both=None):
    """The outputs are new, and hold what they are to hold."""
    parts = [path.read_bytes() for path in (cert, chain)]
    assert [len(pki.load_chain(part.decode())) for part in parts] == [1, 1] and OLD not in parts
    assert both is None or both.read_bytes() == b"".join(parts)


def state(path):
    """What a file that is written is to keep."""
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_gid


@core
def test_replaced_in_one_step(trial, outputs):
    """Who has an old file open keeps reading all of it; the new one has its mode and its owner."""
    for path, mode in zip(outputs, (0o600, 0o640, 0o444)):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, STAFF)
        path.chmod(mode)
        os.link(path, path.with_suffix(".old"))
    result = trial.works(changed=["both.pem"], umask=0o027)
    check(*outputs)
    for path in outputs:
        old = path.with_suffix(".old")
        assert old.read_bytes() == OLD and not old.samefile(path) and state(old) == state(path)
    assert result.out == "" and "W:" not in result.err


def test_links_are_kept(trial):
    """What they lead to changes, be it by two links, or new, or not to be printed."""
    (trial.site / "real").mkdir()
    (trial.site / "real/old").write_bytes(OLD)
    targets = {"cert.pem": "another", "another": "real/old", "chain.pem": "real/new"}
    for name, target in targets.items():
        (trial.site / name).unlink(missing_ok=True)
        (trial.site / name).symlink_to(target)
    result = trial.works(args={"--no-cert": True}, changed=["real/old", "real/new"])
    assert {name: os.readlink(trial.site / name) for name in targets} == targets
    check(trial.cert, trial.chain)
    assert result.out == trial.chain.read_text()


def test_two_runs_at_once(trial):
    """They share account, directory and outputs: both end well, or one says why not."""
    with trial.serve({"order": lambda *_: time.sleep(0.2)}) as ca, ThreadPoolExecutor() as pool:
        runs = [pool.submit(trial.letsacme, *trial.arguments(), ca=ca) for _ in range(2)]
    results = [run.result() for run in runs]
    assert 0 in [result.status for result in results]
    assert all(result.status == 0 or "E: " in result.err for result in results)
    check(trial.cert, trial.chain)
    assert set(trials.snapshot(trial.site)) == {"cert.pem", "chain.pem", "challenges"}


# ---- Where only the files may be written

@core
def test_in_place(trial, outputs):
    """In a folder that may not be written, files of any length are overwritten, with a warning."""
    folder = trial.site / "locked"
    folder.mkdir()
    files = [folder / path.name for path in outputs]
    for count, path, file in zip((0, 1, 200), outputs, files):
        path.unlink()
        path.symlink_to(file)
        file.write_bytes(OLD * count)
    folder.chmod(0o555)
    before = [(path.stat().st_ino, state(path)) for path in files]
    changed = [str(path.relative_to(trial.site)) for path in outputs + files]
    result = trial.works(changed=changed, wrapper=support.UNPRIVILEGED)
    check(*outputs)
    assert [(path.stat().st_ino, state(path)) for path in files] == before
    assert all(WARNING % path in result.err for path in files)


def test_a_mounted_file(trial):
    """As in a container: nothing can take its place, so it is overwritten."""
    path = trial.site / "my cert.pem"
    path.write_bytes(OLD)
    script = 'mount --bind "$1" "$1" && shift && "$@"'
    result = trial.works(args={"--cert-file": path}, changed=[path.name],
                         wrapper=trials.OWN_MOUNTS + support.shell(script, path))
    assert WARNING % path in result.err and result.err.count("W: ") == 1


@pytest.fixture
def user(trial):
    """A Trial as an ordinary user, whose only output is in the directory `out`."""
    with tempfile.TemporaryDirectory(prefix="letsacme-outputs-") as folder:
        trial.site = Path(folder)       # since pytest's own may not be entered
        trial.site.chmod(0o755)
        trial.challenges, trial.out = trial.site / "challenges", trial.site / "out"
        for path in (trial.challenges, trial.out):
            path.mkdir()
            path.chmod(0o777)
        trial.cert = trial.out / "cert"
        trial.cert.write_bytes(OLD)
        trial.options.update({"--cert-file": trial.cert, "--chain-file": None,
                              "--acme-dir": trial.challenges})
        yield trial


@as_root
@pytest.mark.parametrize("wrapper, folder, mode, ids, in_place", [
    (USER, 0o777, 0o640, (NOBODY, STAFF), False),
    pytest.param(USER, 0o777, 0o640, (NOBODY, 0), True, marks=core),
    (USER, 0o777, 0o660, (0, NOBODY), True), (USER, 0o1777, 0o666, (0, 0), True),
    (support.UNPRIVILEGED, 0o755, 0o660, (0, STAFF), True)],
    ids=["one's own", "another group", "another owner", "in a sticky folder",
         "root without its powers"])
def test_owner_and_group(wrapper, folder, mode, ids, in_place, user):
    """A file is overwritten if it cannot be replaced, or not by one of its owner and group."""
    user.out.chmod(folder)
    os.chown(user.cert, *ids)
    user.cert.chmod(mode)
    before = user.cert.stat()
    result = user.works(args={"--cert-file": user.cert}, wrapper=wrapper, changed=["out/cert"])
    assert state(user.cert) == (stat.S_IFREG | mode, *ids)
    assert os.path.samestat(user.cert.stat(), before) == in_place
    assert (WARNING % user.cert in result.err) == in_place


@as_root
@pytest.mark.parametrize("in_place", [True, False])
def test_a_link_is_planted(in_place, user):
    """A link that was not there at the start is not followed: what it leads to stays as it is."""
    victim = user.out / "victim"
    for path in user.cert, victim:
        path.write_bytes(OLD)
        path.chmod(0o666)
        os.chown(path, NOBODY, NOBODY)
    user.out.chmod(0o755 if in_place else 0o777)

    def plant(request, reply):
        user.cert.unlink()
        user.cert.symlink_to(victim)
    result = user.run({"certificate": plant}, wrapper=USER, changed=["out/cert"])
    assert result.status == in_place == user.cert.is_symlink() and victim.read_bytes() == OLD
    assert not in_place or str(user.cert) in trials.error_of(result)


# ---- No room (for a sudden end, see test_crashes.py)

# A disk that has room for one file, but not for another one.
FULL = """
mount -t tmpfs -o size=12k,mode=755 tmpfs "$1" && cp "$1"/../chain.pem "$1" &&
head -c 4096 /dev/zero > "$1/fill" && cd "$1" && shift && "$@"
status=$?
cmp ../chain.pem chain.pem && [ "$(ls)" = "$(printf 'chain.pem\\nfill')" ] || status=99
exit $status
"""


@pytest.mark.parametrize("places, named", [
    ({"--cert-file": "cert.pem", "--chain-file": "chain.pem"}, "chain.pem"),
    ({"--acme-dir": ""}, "[A-Za-z0-9_-]{32}")], ids=["outputs", "challenges"])
def test_a_full_disk(trial, places, named):
    """The error names the file that had no room; all are left as they were."""
    disk = trial.site / "disk"
    disk.mkdir()
    result = trial.fails(args={option: disk / name for option, name in places.items()},
                         wrapper=trials.OWN_MOUNTS + support.shell(FULL, disk))
    assert re.fullmatch("E: %s/%s: No space.*" % (disk, named), trials.error_of(result))


@core
def test_the_output_cannot_be_printed(trial):
    """That is a failure, which says so; the output files are new by then, and whole."""
    trial.fails(None, "standard output", wrapper=support.shell('"$@" >/dev/full'),
                changed=["cert.pem", "chain.pem"])
    check(trial.cert, trial.chain)


# ---- Refused

@pytest.mark.parametrize("make, args", [
    ("ln -s missing/chain x", {"--chain-file": "x"}), ("ln -s .. x", {"--chain-file": "x"}),
    ("mkfifo x", {"--fullchain-file": "x"}), ("mkdir -m 555 x", {"--fullchain-file": "x/new"}),
    ("mkdir x && cp cert.pem x/file && chmod a-w x/file x", {"--fullchain-file": "x/file"}),
    ("touch x && chmod 200 x", {"--fullchain-file": "x"}),
    ("ln -s cert.pem x", {"--cert-file": "cert.pem", "--fullchain-file": "x"}),
    ("cp ../account.key x", {"--cert-file": "x"})])
def test_refused(make, args, trial):
    """An output that cannot be, or would destroy something else, is refused before any order."""
    subprocess.run(make, shell=True, cwd=trial.site, check=True)
    result = trial.refused(args=args, cwd=trial.site, wrapper=support.UNPRIVILEGED)
    path = list(args.values())[-1]
    assert os.path.realpath(trial.site / path) in trials.error_of(result)


def test_what_may_be_overwritten(key, csr):
    """Certificates, perhaps cut, with blank lines and other line ends; but nothing else."""
    key, csr = key().read_bytes(), csr(["a.example"]).read_bytes()
    fits = re.compile(support.module().CERTIFICATES).fullmatch
    for data in (b"", OLD, OLD * 3, b"\r\n\n" + OLD.replace(b"\n", b"\r\n") + b"\n \n" + OLD,
                 *(OLD + OLD[:length] for length in range(len(OLD)))):
        assert fits(data), data
    for data in (key, csr, OLD + key, key + OLD, b"dear diary\n", b"Certificate:\n" + OLD, b"{}",
                 OLD + b"the end", ssl.PEM_cert_to_DER_cert(OLD.decode())):
        assert not fits(data), data
