"""What a run leaves behind that is ended from outside: by a signal at any stage, or by SIGKILL."""
import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time

import faults
import pki
import pytest
import support
import trials
from faults import delivered, problem

core = pytest.mark.core
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Victim:
    """A run of letsacme.py that faults of the CA can send signals to."""

    def __init__(self, trial):
        self.trial, self.file = trial, trial.folder / "pid"

    @property
    def pid(self):
        """The process to hit."""
        return int(self.file.read_text())

    def hit(self, number, then=faults.stay_silent):
        """A fault: send a signal while the run waits for an answer, which may never come."""
        def deliver(handler, data):
            time.sleep(0.1)                 # by then it waits
            os.kill(self.pid, number)
            then(handler, data)
        return delivered(deliver)

    def run(self, script, before=(), **options):
        """Run it against a CA with this script; return the status."""
        tell = support.shell('echo $$ > "$1" && shift && exec "$@"', self.file, *before)
        result = self.trial.run(script, wrapper=tell, **options)
        assert result.status == 0 or "E: ended by signal" in result.err
        return result.status


@pytest.fixture
def victim(trial):
    """A run that a fault of the CA can send signals to; the trial sees that nothing is left."""
    return Victim(trial)


@pytest.mark.parametrize("stage, number", [
    ("directory", signal.SIGTERM), pytest.param("order", signal.SIGTERM, marks=core),
    pytest.param("order", signal.SIGINT, marks=core), ("certificate", signal.SIGHUP)])
def test_a_signal_while_the_ca_is_silent(victim, stage, number):
    """It ends long before any timeout, at once."""
    assert victim.run({stage: victim.hit(number)}) == 128 + number


@core
def test_signals_until_the_end(victim):
    """Impatience does not stop the cleaning up, nor change the status at the last moment."""
    def flood(handler, data):
        with contextlib.suppress(ProcessLookupError):
            for number in itertools.cycle(SIGNALS):
                os.kill(victim.pid, number)
                time.sleep(0.001)
    status = victim.run({"order": victim.hit(signal.SIGTERM, then=flood)})
    assert status in [128 + number for number in SIGNALS]


def test_a_signal_between_two_looks(victim):
    """It ends while it sleeps, too."""
    def fault(request, reply):
        problem("rateLimited", 503, {"Retry-After": "7"})(request, reply)
        threading.Timer(0.5, os.kill, (victim.pid, signal.SIGTERM)).start()
    assert victim.run({"order": fault}) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number, whom", [
    pytest.param(signal.SIGINT, "0", marks=core), (signal.SIGTERM, "$PPID")],
    ids=["openssl and it", "it alone"])
def test_a_signal_while_openssl_works(victim, tmp_path, number, whom):
    """With Ctrl-C the terminal tells openssl as well, which must not be taken for an error."""
    script = """
        [ $1 = dgst ] && echo >> {count}
        [ "$(wc -l < {count})" -lt 6 ] && exec $real "$@"
        sleep 0.2  # before that Python 3.6, still starting it, would leave it behind with a warning
        kill -{number:d} {whom}
        exec sleep 20
        """.format(count=tmp_path / "count", number=number, whom=whom)
    (tmp_path / "count").touch()
    assert victim.run({}, env=support.fake_openssl(tmp_path / "bin", script)) == 128 + number


def test_nohup(victim):
    """Who starts it with nohup does not want it to stop when he leaves."""
    fault = victim.hit(signal.SIGHUP, then=faults.send_all)
    script = {stage: [fault] for stage in ("directory", "challenge", "certificate")}
    assert victim.run(script, before=["nohup"]) == 0


# ---- At any moment

# Runs the script and ends it at the Nth moment: before a line of it that has some words in it, when
# that is reached for the first time, or the next two times. With no end, tells how many there were.
AT_A_MOMENT = """
import os, re, sys
sys.path.insert(0, {folder!r})
import letsacme
vars(letsacme).update({constants!r})
with open(letsacme.__file__, encoding="utf-8") as source:
    lines = [re.search({words!r}, line) for line in source]
seen, moments = {{}}, [0]

def trace(frame, event, _):
    if frame.f_code.co_filename != letsacme.__file__:
        return None
    number = frame.f_lineno
    if event == "line" and lines[number - 1] and seen.setdefault(number, 0) < 3:
        seen[number] += 1
        moments[0] += 1
        if moments[0] == {end}:
            os.kill(os.getpid(), {signal})
    return trace

sys.settrace(trace)
status = letsacme.main(sys.argv[1:])
sys.settrace(None)
if not {end}:
    sys.stdout.write("moments: %d" % moments[0])
sys.exit(status)
"""
# What lines have in them that change a file system
CHANGES = r"'x'|\.(write|truncate)\(|os\.(makedirs|remove|rename|open|chown|chmod|fsync)\("


class Renewal:
    """A renewal that is due, with all three outputs, to be ended at some moment."""

    def __init__(self, trial):
        self.trial, self.issuer = trial, pki.Issuer()
        key = pki.load_key(trial.key).public_key()
        parts = [pki.pem(self.issuer.leaf(trial.names, key, days=(-90, 1))),
                 pki.pem(self.issuer.intermediate)]
        self.old = {trial.cert: parts[0], trial.chain: parts[1],
                    trial.site / "fullchain.pem": b"".join(parts)}
        trial.options.update({"--renew": True, "--fullchain-file": trial.site / "fullchain.pem"})

    def end(self, ca, words, moment, number=signal.SIGKILL):
        """From the old files, run it until a moment; return its status and what it printed."""
        for path in self.trial.site.rglob("*"):
            if path.is_file():
                path.unlink()
        for path, content in self.old.items():
            path.write_bytes(content)
        code = AT_A_MOMENT.format(folder=str(support.SCRIPT.parent), constants=trials.WAITS,
                                  words=words, end=moment, signal=int(number))
        # A signal may come just before a connection is closed, which is then left to the system.
        command = [*support.interpreter().command, "-W", "ignore::ResourceWarning", "-c", code]
        command += [*map(str, self.trial.arguments()), "--ca", ca.directory]
        result = subprocess.run(command, stdin=subprocess.DEVNULL,
                                env=self.trial.letsacme.environment(ca), cwd=self.trial.folder,
                                capture_output=True, text=True, timeout=60)
        return result.returncode, result.stdout, result.stderr

    def moments(self, ca, words):
        """How many moments there are."""
        status, out, err = self.end(ca, words, 0)
        assert status == 0, err
        return int(out.partition("moments: ")[2])

    def now(self):
        """Which outputs are new; each is whole."""
        for path in self.old:
            assert len(pki.load_chain(path.read_text())) == 1 + (path.name == "fullchain.pem")
        return [path for path, content in self.old.items() if path.read_bytes() != content]

    def finish(self, ca):
        """Let the next run put everything right."""
        result = self.trial.letsacme(*self.trial.arguments(), ca=ca, constants=trials.WAITS)
        assert result.status in (0, 3), result.err
        cert, chain, fullchain = [path.read_bytes() for path in self.old]
        assert fullchain == cert + chain and self.trial.cert in self.now()


@pytest.fixture
def renewal(trial):
    """A renewal that is due."""
    return Renewal(trial)


@pytest.mark.parametrize("part", range(2))
def test_killed_before_any_change_of_files(renewal, part):
    """Every output is whole, old or new; the next run mends what was left half published."""
    states = set()
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        total = renewal.moments(ca, CHANGES)
        assert total > 25
        for moment in range(1 + part, total + 1, 2):
            status, _, err = renewal.end(ca, CHANGES, moment)
            assert status == -signal.SIGKILL, (moment, err)
            # Which outputs are new, and what kinds of files are left besides?
            left = {path.name[:5] if path.name[0] == "." else path.parent
                    for path in renewal.trial.site.rglob("*") if path not in renewal.old}
            state = (*renewal.now(), *left)
            if state not in states:
                renewal.finish(ca)
            states.add(state)
    assert len(states) >= 3


def test_a_signal_at_any_moment(renewal):
    """As before, but what it had written besides is gone too."""
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        total, count = renewal.moments(ca, ""), 12
        first = 20                          # before that, a signal means to Python what it likes
        for turn, number in zip(range(count), itertools.cycle(SIGNALS)):
            moment = first + (total - first) * (1 + turn) // count
            status, out, err = renewal.end(ca, "", moment, number)
            assert status in (0, 128 + number) and not out, (moment, status, err)
            support.judge_words(err)
            renewal.now()
            assert set(renewal.trial.site.rglob("*")) == {renewal.trial.challenges, *renewal.old}
