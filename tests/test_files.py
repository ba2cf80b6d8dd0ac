"""Files of this machine that are not as they should be: inputs, challenge directories, disks.

What can be found out here is found out before the CA is contacted. (Outputs: see test_outputs.py.)
"""
import json
import os
import stat

import pki
import pytest
import trials
from faults import delivered, late, problem
from support import UNPRIVILEGED, cases, end, interpreter, shell

core = pytest.mark.core


# ---- What lies there instead: functions that put something at a path

def missing(path):
    """There is nothing at all."""


def directory(path):
    """A directory."""
    path.mkdir()


def full_directory(path):
    """A directory with something in it."""
    path.mkdir()
    (path / "keep").write_text("this is someone's")


def locked(path):
    """A file that may not be read."""
    path.touch(0)


def pipe(path):
    """A pipe that nobody writes into."""
    os.mkfifo(path)


def link(path):
    """A link to a file of the site."""
    path.symlink_to("../cert.pem")


def link_to_nothing(path):
    """A link that leads nowhere yet."""
    path.symlink_to("../made")


def link_to_directory(path):
    """A link to a directory."""
    path.symlink_to("..")


def file(path):
    """A file that is longer than a challenge."""
    path.write_text("x" * 10000)


def kinds(first, *others):
    """Parametrise by such functions; the first case is a core one."""
    return cases({make.__name__: make for make in (first, *others)})


# ---- Inputs

STATUS = {"--account-key": 1, "--csr": 1, "--config-json": 2}
CONTENT = {"empty": b"", "binary": bytes(range(256)) * 40, "text": b"hello\n",
           "pem": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
           "half-pem": b"-----BEGIN CERTIFICATE REQUEST-----\nMII", "deep": b"[" * 200000,
           "other-pem": trials.OLD}


@pytest.mark.parametrize("option", STATUS)
@pytest.mark.parametrize("content", cases(CONTENT))
def test_an_input_holds_nonsense(trial, tmp_path, option, content):
    """The error names the file."""
    (tmp_path / "nonsense").write_bytes(content)
    trial.refused("nonsense", status=STATUS[option], args={option: tmp_path / "nonsense"})


@pytest.mark.parametrize("option", STATUS)
@pytest.mark.parametrize("make", kinds(missing, directory, locked))
def test_an_input_is_no_good_file(trial, tmp_path, option, make):
    """The same where there is no file, or none to be read."""
    make(tmp_path / "input")
    trial.refused("input", status=STATUS[option], args={option: tmp_path / "input"},
                  wrapper=UNPRIVILEGED)


@pytest.mark.parametrize("option", ["--csr", "--config-json"])
def test_an_input_never_ends(trial, tmp_path, option):
    """What Python reads, it reads up to a limit; the bound of the whole run ends the rest."""
    trial.refused("/dev/zero", status=STATUS[option], args={option: "/dev/zero"})
    if option == "--csr":
        pipe(tmp_path / "pipe")
        trial.refused(args={option: tmp_path / "pipe"}, waits={"LONGEST_RUN": 1.5})


@pytest.mark.parametrize("option, said", [
    ("--csr", "CERTIFICATE"), ("--account-key", "private key")])
def test_an_input_is_something_else(trial, option, said):
    """The error says what it is, or what it is to be."""
    trial.refused(said, args={option: trial.cert})


@core
def test_names_in_capitals_and_twice(trial, csr):
    """They are ordered once, as the CSR spells them."""
    path = csr(["WWW.Site.EXAMPLE", "www.site.example", "site.example"], cn="SITE.example")
    order = trial.works(args={"--csr": path}).ca.orders[0]
    names = {each["value"].lower(): each["value"] for each in order["identifiers"]}
    assert len(order["identifiers"]) == len(names) == 2 and "site.example" in names.values()


# ---- Challenge directories

@pytest.mark.parametrize("make", kinds(missing, directory, file, pipe))
def test_the_challenge_directory_is_none(trial, tmp_path, make):
    """Absent, a file or a pipe; or a directory that may not be written."""
    make(tmp_path / "place")
    if make is directory:
        (tmp_path / "place").chmod(0o555)
    trial.refused("site.example", str(tmp_path / "place"), wrapper=UNPRIVILEGED,
                  args={"--acme-dir": tmp_path / "place"})


@pytest.mark.parametrize("typo", ["_well-known/acme-challenge", ".well-known/acme-challenges"])
def test_the_challenge_directory_is_misspelt(trial, typo):
    """Only the well-known one is made in a document root that exists."""
    (trial.site / "root").mkdir()
    trial.refused(typo.split("/")[0], args={"--acme-dir": trial.site / "root" / typo})


@pytest.mark.parametrize("umask", [0o000, 0o027, pytest.param(0o077, marks=core), 0o777], ids=oct)
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


TOKEN = "A" * 43


@core
def test_a_directory_has_the_name_of_the_token(trial):
    """It stays, and is named."""
    full_directory(trial.challenges / TOKEN)
    result = trial.fails(None, str(trial.challenges / TOKEN), ca={"token": TOKEN})
    assert result.ca.count("challenge") == 0


@pytest.mark.parametrize("make", kinds(full_directory, directory))
def test_a_directory_gives_way_by_force(trial, make):
    """That is what --force is for."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": True}, ca={"token": TOKEN},
                changed=["challenges/" + TOKEN, "challenges/%s/keep" % TOKEN])
    assert not list(trial.challenges.iterdir())


@pytest.mark.parametrize("make", kinds(link, link_to_nothing, file, pipe, link_to_directory))
@pytest.mark.parametrize("force", [True, None])
def test_something_has_the_name_of_the_token(trial, make, force):
    """A link is not followed: its target is neither written nor removed."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": force}, ca={"token": TOKEN}, changed=["challenges/" + TOKEN])
    assert not list(trial.challenges.iterdir())


# ---- Disks and streams

# A disk of two pages, which are full.
DISK = 'mount -t tmpfs -o size=8k tmpfs "$1" && head -c 8192 /dev/zero > "$1/x" && shift && "$@"'


@core
def test_the_disk_is_full(trial):
    """The error names the challenge file. (For outputs: see test_outputs.py.)"""
    disk = trial.site / "disk"
    disk.mkdir()
    trial.fails(None, "No space", str(disk), args={"--acme-dir": disk},
                wrapper=trials.OWN_MOUNTS + shell(DISK, disk))


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "<&-"])
def test_streams_that_do_not_matter(trial, streams):
    """A log that is lost is no error, and no file is taken for the log."""
    trial.works(wrapper=shell('"$@" ' + streams))


@core
def test_the_output_cannot_be_printed(trial):
    """That is a failure, which says so; the output files are new by then, and whole."""
    trial.fails(None, "standard output", wrapper=shell('"$@" >/dev/full'),
                changed=["cert.pem", "chain.pem"])
    assert [len(pki.load_chain(path.read_text())) for path in (trial.cert, trial.chain)] == [1, 1]
    assert trials.OLD not in (trial.cert.read_bytes(), trial.chain.read_bytes())


WORDS = "\u043a\u043b\u044e\u0447-\u4e2d\u6587-\xe9-\U0001f511"     # letters of several scripts


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "xx_XX.nonsense"])
def test_other_scripts(trial, locale):
    """In paths, in the configuration, in the words of the CA; whatever the locale can show."""
    folder = trial.site / WORDS
    trial.challenges.rename(folder)
    trial.challenges = folder
    env = {"LC_ALL": locale, "LANG": locale}
    trial.works(args={"--acme-dir": folder}, env=env)
    config = json.dumps({"AcmeDir": str(folder), "_": WORDS}, ensure_ascii=False)
    trial.works(args={"--acme-dir": None, "--config-json": config}, env=env)
    (trial.folder / "config.json").write_text(config)
    trial.works(args={"--acme-dir": None, "--config-json": "config.json"}, env=env)
    trial.fails({"newOrder": problem("malformed", detail=WORDS)}, WORDS,
                args={"--acme-dir": folder}, env=env)
    # Python 3.6 takes paths for ASCII in such a locale, so that "?" stands for each odd byte.
    shown = WORDS if interpreter().version > (3, 6) or locale == "C.UTF-8" else "/site/"
    trial.refused(shown, args={"--acme-dir": folder / WORDS}, env=env)


@core
def test_two_runs_at_once(trial):
    """They share account, directory and outputs: both end well, or one says why not."""
    with trial.serve({"order": delivered(late(0.2))}) as ca:
        processes = [trial.letsacme.start(*trial.arguments(), ca=ca) for _ in range(3)]
        try:
            results = [(process, *process.communicate(timeout=60)) for process in processes]
        finally:
            for process in processes:
                end(process)
    assert 0 in [process.returncode for process, _, _ in results]
    for process, out, err in results:
        assert process.returncode == 0 or (not out and b"E: " in err and b"Traceback" not in err)
    assert [len(pki.load_chain(path.read_text())) for path in (trial.cert, trial.chain)] == [1, 1]
    assert trials.OLD not in (trial.cert.read_bytes(), trial.chain.read_bytes())
    assert set(trials.snapshot(trial.site)) == {"cert.pem", "chain.pem", "challenges"}
