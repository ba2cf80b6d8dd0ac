"""Files of this machine that are not as they should be: inputs, challenge directories, streams.

What can be found out here is found out before the CA is contacted. (Outputs: see test_outputs.py.)
"""
import json
import os
import stat

import pki
import pytest
from faults import problem
from support import UNPRIVILEGED, interpreter, shell

core = pytest.mark.core


@pytest.mark.parametrize("option, name, make, said", [
    ("--account-key", "input", pki.block(pki.public_der(pki.new_key().public_key()), b"PUBLIC KEY"),
     "private key"),
    ("--account-key", "input", lambda path: pki.write_key(path, "p521"), "RSA, P-256 or P-384"),
    ("--csr", "input", os.mkdir, ""), ("--config-json", "input", lambda path: path.touch(0), ""),
    ("--config-json", "input", bytes(range(256)), ""), ("--config-json", "input", b"", ""),
    pytest.param("--config-json", "input", b"[" * 200000, "", marks=core),
    # The directory must be there, save the well-known one in a document root, and may be written.
    ("--acme-dir", "input/missing", os.mkdir, "no directory"),
    ("--acme-dir", "input", lambda path: path.mkdir(0o555), "may not be written"),
    ("--acme-dir", "input/_well-known/acme-challenge", os.mkdir, "no directory")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_an_input_is_no_good(trial, option, name, make, said):
    """The error names it, and says what it is or what it is to be."""
    path = trial.folder / "input"
    if callable(make):
        make(path)
    else:
        path.write_bytes(make)
    trial.refused(str(trial.folder / name), said, status=2 if option == "--config-json" else 1,
                  args={option: trial.folder / name}, wrapper=UNPRIVILEGED)


def test_an_input_never_ends(trial, tmp_path):
    """What Python reads, it reads up to a limit; the bound of the whole run ends the rest."""
    trial.refused("/dev/zero", args={"--csr": "/dev/zero"})
    os.mkfifo(tmp_path / "pipe")
    trial.refused(args={"--csr": tmp_path / "pipe"}, waits={"LONGEST_RUN": 1})


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


def test_a_directory_has_the_name_of_the_token(trial):
    """It stays, and is named."""
    (trial.challenges / TOKEN / "of someone's").mkdir(parents=True)
    result = trial.fails(None, str(trial.challenges / TOKEN), ca={"token": TOKEN})
    assert result.ca.count("challenge") == 0


@pytest.mark.parametrize("force, make", [
    (True, lambda path: (path / "of someone's").mkdir(parents=True)), (None, os.mkfifo),
    (True, lambda path: path.symlink_to("..")),
    (None, lambda path: path.symlink_to("../cert.pem"))],
    ids=["directory", "pipe", "link to a directory", "link"])
def test_something_has_the_name_of_the_token(trial, make, force):
    """A directory gives way by force, all else anyhow; a link's target is not touched."""
    make(trial.challenges / TOKEN)
    trial.works(args={"--force": force}, ca={"token": TOKEN},
                changed=["challenges/" + TOKEN, "challenges/%s/of someone's" % TOKEN])
    assert not list(trial.challenges.iterdir())


@pytest.mark.parametrize("streams", [pytest.param("<&- 2>&-", marks=core), "2>/dev/full"])
def test_streams_that_do_not_matter(trial, streams):
    """A log that is lost is no error, and no file is taken for the log."""
    trial.works(wrapper=shell('"$@" ' + streams))


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
