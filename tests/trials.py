"""Trials: runs of letsacme.py against scripted CAs, and a judge of what they say and leave behind.

Every case of the tests that use it ends in bounded time, with the certificate or with a readable
error: no traceback, nothing printed and no output changed on failure, no challenge file left, no
control character and no secret in the log, and no request that RFC 8555 does not allow.
"""
import os
import re
from pathlib import Path

import pki
import pytest
import support
from scripted_ca import ScriptedCA
from werkzeug import Response

# What is in the outputs before
OLD = pki.pem(pki.Issuer().leaf(["old.example"], pki.new_key().public_key()))
# Control characters, other line ends, changes of the direction of writing
HARMFUL = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe]")
SECRET = "c2VjcmV0" * 8                     # a key for EAB, which nobody may ever see
# What the script waits for: little where it is to succeed, less where it is to give up
WAITS = {"ANSWER_TIMEOUT": 2, "REQUEST_PATIENCE": 8, "WORK_PATIENCE": 20, "DOUBT_PATIENCE": 0.5,
         "LONGEST_RUN": 60, "FIRST_PAUSE": 0.01, "SLOW_AFTER": 4, "LONGEST_PAUSE": 0.1,
         "LONGEST_POLL_PAUSE": 1}
IN_VAIN = {"SLOW_AFTER": 0.1, "REQUEST_PATIENCE": 1, "WORK_PATIENCE": 1, "DOUBT_PATIENCE": 0.3}
WELL_KNOWN = "/.well-known/acme-challenge/"
# Put before a command: it gets a view of its own of what is mounted
OWN_MOUNTS = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


def snapshot(folder):
    """What a folder holds: the mode of everything, and its content or target."""
    found = {}
    for path in folder.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = oct(path.lstat().st_mode), content
    return found


def refusals(err):
    """The error lines of a log."""
    return [line for line in err.splitlines() if line.startswith("E: ")]


def error_of(result):
    """The only error of a run that failed."""
    assert result.status == 1, result.err
    [error] = refusals(result.err)
    return error


class Trial:
    """Works in the folder `site`, which holds a challenge directory and two old outputs; it also
    prints. A test may change `options`, the command line (None takes one away)."""

    def __init__(self, letsacme, folder, account, key, csr):
        self.letsacme, self.folder, self.key = letsacme, folder, key
        self.names = ["www.site.example", "site.example"]
        self.site = folder / "site"
        self.challenges = self.site / "challenges"
        self.challenges.mkdir(parents=True)
        self.cert, self.chain = self.site / "cert.pem", self.site / "chain.pem"
        for output in (self.cert, self.chain):
            output.write_bytes(OLD)
            output.chmod(0o640)
        self.options = {"--account-key": account, "--csr": csr(self.names, key=key),
                        "--acme-dir": self.challenges, "--disable-check": True,
                        "--cert-file": self.cert, "--chain-file": self.chain}

    def arguments(self, changes=None):
        """The command line."""
        words = []
        for name, value in {**self.options, **(changes or {})}.items():
            words += [name] if value is True else [name, value] if value is not None else []
        return words

    def to_renew(self, issuer, days=(-80, 10), **more):
        """Have it renew a certificate, which is in the output for all; more: see Issuer.leaf."""
        self.options.update({"--renew": True, "--fullchain-file": self.site / "fullchain.pem"})
        old = issuer.leaf(self.names, pki.load_key(self.key).public_key(), days, **more)
        self.options["--fullchain-file"].write_bytes(pki.pem(old, issuer.intermediate))
        return old

    def serve(self, script=None, **options):
        """A scripted CA that validates in the challenge directory."""
        return ScriptedCA(self.folder / support.fresh_name("ca"), script,
                          **{"challenges": self.challenges, **options})

    def run(self, script=None, args=None, ca=None, waits=None, changed=(), timeout=60, **run):
        """Run it to its end; args are changed options, ca are options of the scripted CA, waits
        other ones than WAITS, unless all are scaled; changed names what else in the site may
        differ afterwards, which is the test's to check."""
        before = snapshot(self.site)
        waits = {} if "scale" in run else {**WAITS, **(waits or {})}
        with self.serve(script, **(ca or {})) as server:
            result = self.letsacme(*self.arguments(args), ca=server, timeout=timeout,
                                   constants=waits, **run)
        result.ca = server
        outputs = ["cert.pem", "chain.pem"] if result.status == 0 else []
        self.judge(result.err, before, [*changed, *outputs])
        assert bool(refusals(result.err)) == (result.status not in (0, 3)), result.err
        if result.status == 0:
            given = {**self.options, **(args or {})}
            output = given["--cert-file"] or given.get("--fullchain-file")
            leaf = pki.load_chain(Path(output).read_text() if output else result.out)[0]
            assert {name.lower() for name in pki.names_of(leaf)} >= set(self.names)
            assert leaf.public_key() == pki.load_key(self.key).public_key()
        return result

    def judge(self, err, before, changed=()):
        """Whatever happened: readable words, no secret, no file that should not be there."""
        assert not HARMFUL.search(err) and max(map(len, err.split("\n"))) < 5000, err
        assert "PRIVATE KEY-----" not in err and SECRET not in err
        support.judge_words(err)
        after = snapshot(self.site)
        for name in {*before, *after} - {*changed}:
            assert after.get(name) == before.get(name), name

    def works(self, script=None, **run):
        """It gets the certificate in spite of all."""
        result = self.run(script, **run)
        assert result.status == 0, result.err
        if not run.get("args") and "--fullchain-file" not in self.options:
            assert result.out.encode() == self.cert.read_bytes() + self.chain.read_bytes()
        return result

    def fails(self, script=None, *words, status=1, waits=None, **run):
        """It ends with this status and says these words in its errors."""
        result = self.run(script, waits={**IN_VAIN, **(waits or {})}, **run)
        assert result.status == status, result.err
        said = "\n".join(refusals(result.err))
        assert all(word in said for word in words), result.err
        return result

    def refused(self, *words, status=1, **run):
        """It fails before the CA is asked anything."""
        result = self.fails(None, *words, status=status, **run)
        assert result.ca.connections == 0
        return result


@pytest.fixture
def trial(letsacme, tmp_path, account, key, csr):
    """A Trial: trial.works(script), trial.fails(script, "words"), trial.refused("words")."""
    return Trial(letsacme, tmp_path, account, key(), csr)


@pytest.fixture
def site(trial, httpserver):
    """site(answer) has the script check its files on a site; returns what ScriptedCA must know.

    answer makes a Response (see test_site.py for others) of the request and the right content.
    """
    def make(answer=lambda request, content: Response(content)):
        def serve(request):
            return answer(request, (trial.challenges / request.path.split("/")[-1]).read_bytes())
        httpserver.expect_request(re.compile(WELL_KNOWN)).respond_with_handler(serve)
        for name in trial.names:
            trial.letsacme.add_host(name)
        trial.options["--disable-check"] = None
        return {"http_port": httpserver.port}
    return make


def page(content, status=200, **headers):
    """An answer that does not care for what is right."""
    return lambda request, right: Response(content, status, headers)
