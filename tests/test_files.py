"""Files of this machine that are not as they should be: inputs, challenge directories, disks.

What can be found out here is found out before the CA is contacted. (Outputs: see test_outputs.py.)
"""
import json
import os
import stat
import time

import pki
import pytest
import trials
from faults import problem
from support import UNPRIVILEGED, end, interpreter, shell

core = pytest.mark.core


# ---- Inputs

def holding(content):
    """A function that makes such a file."""
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize("option, make, said", [
    ("--account-key", lambda path: None, ""), ("--csr", lambda path: path.mkdir(), ""),
    ("--config-json", lambda path: path.touch(0), ""),
    ("--account-key", holding(trials.OLD), "private key"),
    ("--csr", holding(trials.OLD), "CERTIFICATE"), ("--csr", holding(bytes(range(256))), ""),
    ("--csr", holding(b"-----BEGIN CERTIFICATE REQUEST-----\nMII"), ""),
    ("--config-json", holding(bytes(range(256))), ""), ("--config-json", holding(b""), ""),
    pytest.param("--config-json", holding(b"[" * 200000), "", marks=core)],
    ids=["missing", "directory", "locked", "certificate", "certificate", "binary", "half", "binary",
         "empty", "deep"])
def test_an_input_is_no_good(trial, tmp_path, option, make, said):
    """The error names the file, and says what it is or what it is to be."""
    make(tmp_path / "input")
    trial.refused("input", said, status=2 if option == "--config-json" else 1,
                  args={option: tmp_path / "input"}, wrapper=UNPRIVILEGED)


def test_an_input_never_ends(trial, tmp_path):
    """What Python reads, it reads up to a limit; the bound of the whole run ends the rest."""
    trial.refused("/dev/zero", args={"--csr": "/dev/zero"})
    os.mkfifo(tmp_path / "pipe")
    trial.refused(args={"--csr": tmp_path / "pipe"}, waits={"LONGEST_RUN": 1})


# ---- Challenge directories

@pytest.mark.parametrize("mode, path, said", [
    (0o755, "missing", "missing"), (0o555, "", "/root"),
    (0o755, "_well-known/acme-challenge", "_well-known")], ids=["missing", "locked", "misspelt"])
def test_the_challenge_directory_is_no_good(trial, mode, path, said):
    """It must be there, save the well-known one in a document root, and may be written."""
    root = trial.site / "root"
    root.mkdir(mode)
    trial.refused("site.example", said, wrapper=UNPRIVILEGED, args={"--acme-dir": root / path})


@core
def test_umask(trial):
    """The web server can read what it has to serve, and its directories."""
    root = trial.site / "root"
    root.mkdir()
    trial.challenges = root / ".well-known" / "acme-challenge"
    folders = ["root/.well-known", "root/.well-known/acme-challenge"]
    args = {"--acme-dir": None, "--config-json": json.dumps({"DocumentRoot": str(root)})}
    result = trial.works(args=args, changed=folders, wrapper=shell('umask 777; "$@"'))
    assert {mode for _, mode in result.ca.files} == {stat.S_IFREG | 0o644}
    assert {(trial.site / each).stat().st_mode for each in folders} == {stat.S_IFDIR | 0o755}


TOKEN = "A" * 43


def full_directory(path):
    """Make a directory with something in it."""
    path.mkdir()
    (path / "keep").write_text("this is someone's")


def test_a_directory_has_the_name_of_the_token(trial):
    """It stays, and is named."""
    full_directory(trial.challenges / TOKEN)
    result = trial.fails(None, str(trial.challenges / TOKEN), ca={"token": TOKEN})
    assert result.ca.count("challenge") == 0


@pytest.mark.parametrize("force, make", [
    (True, full_directory), (True, lambda path: path.symlink_to("..")), (None, os.mkfifo),
    (None, lambda path: path.symlink_to("../cert.pem"))],
    ids=["directory", "link to a directory", "pipe", "link"])
def test_something_has_the_name_of_the_token(trial, make, force):
    """A directory gives way by force, all else anyhow; a link's target is not touched."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": force}, ca={"token": TOKEN},
                changed=["challenges/" + TOKEN, "challenges/%s/keep" % TOKEN])
    assert not list(trial.challenges.iterdir())


# ---- Disks and streams

# A disk of two pages, which are full.
DISK = 'mount -t tmpfs -o size=8k tmpfs "$1" && head -c 8192 /dev/zero > "$1/x" && shift && "$@"'


def test_the_disk_is_full(trial):
    """The error names the challenge file."""
    disk = trial.site / "disk"
    disk.mkdir()
    trial.fails(None, "No space", str(disk), args={"--acme-dir": disk},
                wrapper=trials.OWN_MOUNTS + shell(DISK, disk))


@pytest.mark.parametrize("streams", [pytest.param("<&- 2>&-", marks=core), "2>/dev/full"])
def test_streams_that_do_not_matter(trial, streams):
    """A log that is lost is no error, and no file is taken for the log."""
    trial.works(wrapper=shell('"$@" ' + streams))


def outputs_are_new(trial):
    """Are the outputs new and whole?"""
    assert [len(pki.load_chain(path.read_text())) for path in (trial.cert, trial.chain)] == [1, 1]
    return trials.OLD not in (trial.cert.read_bytes(), trial.chain.read_bytes())


@core
def test_the_output_cannot_be_printed(trial):
    """That is a failure, which says so; the output files are new by then, and whole."""
    trial.fails(None, "standard output", wrapper=shell('"$@" >/dev/full'),
                changed=["cert.pem", "chain.pem"])
    assert outputs_are_new(trial)


WORDS = "\u043a\u043b\u044e\u0447-\u4e2d\u6587-\xe9-\U0001f511"     # letters of several scripts


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_other_scripts(trial, locale):
    """In paths, in the configuration, in the words of the CA; whatever the locale can show."""
    folder = trial.site / WORDS
    trial.challenges.rename(folder)
    trial.challenges = folder
    env = {"LC_ALL": locale, "LANG": locale}
    config = json.dumps({"AcmeDir": str(folder), "_": WORDS}, ensure_ascii=False)
    trial.fails({"newOrder": problem("malformed", detail=WORDS)}, WORDS, env=env,
                args={"--acme-dir": None, "--config-json": config})
    (trial.folder / WORDS).write_text(config)
    trial.works(args={"--acme-dir": None, "--config-json": WORDS}, env=env)
    # Python 3.6 takes paths for ASCII in such a locale, so that "?" stands for each odd byte.
    shown = WORDS if interpreter().version > (3, 6) or locale == "C.UTF-8" else "/site/"
    trial.refused(shown, args={"--acme-dir": folder / WORDS}, env=env)


def test_two_runs_at_once(trial):
    """They share account, directory and outputs: both end well, or one says why not."""
    with trial.serve({"order": lambda *_: time.sleep(0.2)}) as ca:
        processes = [trial.letsacme.start(*trial.arguments(), ca=ca) for _ in range(2)]
        try:
            results = [(process, *process.communicate(timeout=60)) for process in processes]
        finally:
            for process in processes:
                end(process)
    assert 0 in [process.returncode for process in processes]
    for process, out, err in results:
        assert process.returncode == 0 or (not out and b"E: " in err and b"Traceback" not in err)
    assert outputs_are_new(trial)
    assert set(trials.snapshot(trial.site)) == {"cert.pem", "chain.pem", "challenges"}
