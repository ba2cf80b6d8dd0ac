"""The files that are written: replaced in one step, or refused before the CA is asked."""
import os
import re

import pytest
import support

OPTIONS = {"--cert-file": "cert", "--chain-file": "chain", "--fullchain-file": "both"}


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
            assert support.load_chain(text) == support.load_chain(chain)
        else:
            assert len(support.load_chain(text)) == (1 if part == "cert" else 2)
            support.check_chain(text + chain * (part == "cert"), result.hosts, key(), pebble.root)
    return make


# --- written in one step --------------------------------------------------------------------------

@pytest.mark.core
def test_replaced_in_one_step(run, check, out):
    """Whoever has an old file open keeps reading all of it: each output is another file now."""
    outputs = {option: out / part for option, part in OPTIONS.items()}
    for path in outputs.values():
        path.write_text("old " + path.name)
        os.link(path, "%s.old" % path)
    result = run(outputs)
    assert result.out == ""
    for path in outputs.values():
        check(path, result, path.name)
        assert (out / (path.name + ".old")).read_text() == "old " + path.name
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
    path.write_text("old")
    path.chmod(mode)
    result = run({"--fullchain-file": path}, umask=0o027)
    check(path, result)
    assert path.stat().st_mode & 0o7777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_is_kept(run, check, out):
    """A file of another user stays his."""
    path = out / "both"
    path.write_text("old")
    os.chown(path, 65534, 65534)
    result = run({"--fullchain-file": path})
    check(path, result)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@pytest.mark.parametrize("target", ["real/both", "../out/real/both", "{out}/real/both", "another",
                                    "real/new"])
def test_link_is_kept(target, run, check, out):
    """A symbolic link, or a link to a link, stays one, and the file it names changes."""
    (out / "real").mkdir()
    (out / "real/both").write_text("old")
    (out / "another").symlink_to("real/both")
    target = target.format(out=out)
    link = out / "live"
    link.symlink_to(target)
    result = run({"--fullchain-file": link})
    check(link, result)
    assert os.readlink(link) == target and os.readlink(out / "another") == "real/both"
    assert sorted(path.name for path in out.iterdir()) == ["another", "live", "real"]
    assert target == "real/new" or not (out / "real/both").read_text() == "old"


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
    for size, path in zip((0, 10, 100000), outputs.values()):
        path.write_text("o" * size)
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
    (out / "real/both").write_text("old")
    (out / "real").chmod(0o555)
    (out / "live").symlink_to("real/both")
    result = run({"--fullchain-file": out / "live"}, wrapper=support.UNPRIVILEGED)
    check(out / "live", result)
    assert (out / "live").is_symlink()


# --- refused --------------------------------------------------------------------------------------

def content(folder):
    """All files of a folder with their contents, links and numbers."""
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns, path.is_symlink(),
                   path.is_file() and path.stat().st_mode & 0o400 and path.read_bytes())
            for path in folder.rglob("*")}


def locked(path):
    """A path that can neither be written nor be replaced."""
    path.mkdir()
    (path / "file").write_text("old")
    (path / "file").chmod(0o444)
    path.chmod(0o555)


def fifo(path):
    """A path that is a pipe."""
    os.mkfifo(path)


SITUATIONS = {
    "folder is missing": ({"--cert-file": "missing/cert"}, None),
    "folder is a file": ({"--cert-file": "x/cert"}, lambda path: path.write_text("old")),
    "a folder": ({"--chain-file": "x"}, lambda path: path.mkdir()),
    "link to a folder": ({"--chain-file": "x"}, lambda path: path.symlink_to("..")),
    "link to nowhere": ({"--chain-file": "x"}, lambda path: path.symlink_to("missing/chain")),
    "pipe": ({"--fullchain-file": "x"}, fifo),
    "new file in locked folder": ({"--fullchain-file": "x/new"}, locked),
    "locked file in locked folder": pytest.param(
        {"--fullchain-file": "x/file"}, locked, marks=pytest.mark.core),
    "twice": ({"--cert-file": "same", "--chain-file": "same"}, None),
    "twice, other words": ({"--cert-file": "same", "--fullchain-file": "../out/./same"}, None),
    "twice by a link": ({"--cert-file": "same", "--fullchain-file": "x"},
                        lambda path: path.symlink_to("same")),
    "account key": pytest.param(
        {"--cert-file": "../account.key"}, None, marks=pytest.mark.core),
    "account key by a link": ({"--fullchain-file": "x"},
                              lambda path: path.symlink_to("../account.key")),
    "CSR": ({"--fullchain-file": "../the.csr"}, None),
    "private key": ({"--cert-file": "x"}, lambda path: support.write_key(path, "p256")),
    "private key by a link": ({"--cert-file": "x"}, lambda path: path.symlink_to(
        support.write_key(path.parent / "domain.key", "rsa2048"))),
}


@pytest.mark.parametrize("outputs, prepare", SITUATIONS.values(), ids=SITUATIONS)
def test_refused(outputs, prepare, letsacme, basics, names, nginx, pebble, out):
    """An output that cannot be, or would destroy something else, is refused before any order."""
    if prepare:
        prepare(out / "x")
    [host] = names()
    arguments = basics([host])
    arguments[3] = arguments[3].rename(letsacme.folder / "the.csr")
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
        (out / name).write_text("old")
    outputs = [word for option, part in OPTIONS.items() for word in (option, out / part)]
    [host] = names()
    before = content(out)
    result = letsacme(*basics([host]), "--acme-dir", out, "--config-json", "{}", *outputs,
                      "--disable-check", ca=pebble)
    assert result.status == 1
    assert re.search("^E: .*%s: " % host, result.err, re.M)
    assert content(out) == before
