"""What a run leaves behind that is ended from outside: by a signal at any stage, or by SIGKILL."""
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
    """A run of letsacme.py that a fault can hit."""

    def __init__(self, trial):
        self.trial, self.before = trial, trials.snapshot(trial.site)
        self.process, self.ready = None, threading.Event()

    def hit(self, *numbers, then=faults.stay_silent):
        """A fault: send the signals while the run waits for an answer, which may never come."""
        def deliver(handler, data):
            self.ready.wait(60)
            time.sleep(0.1)                 # by then it waits
            for number in numbers:
                os.kill(self.process.pid, number)
            then(handler, data)
        return delivered(deliver)

    def run(self, script, **options):
        """Run against a CA with this script until the signal has ended it; return its status."""
        with self.trial.serve(script) as ca:
            self.process = self.trial.letsacme.start(*self.trial.arguments(), ca=ca, **options)
            self.ready.set()
            try:
                self.out, err = self.process.communicate(timeout=25)
            finally:
                support.end(self.process)
        self.err = err.decode()
        support.judge_words(self.err)
        return self.process.returncode

    def leaves_nothing(self):
        """No output, nothing printed, no challenge file."""
        self.trial.judge(self.err, self.before)
        assert not self.out
        return True


@pytest.fixture
def victim(trial):
    """A run that a fault of the CA can send signals to."""
    return Victim(trial)


@pytest.mark.parametrize("stage, number", [
    ("directory", signal.SIGTERM), pytest.param("order", signal.SIGTERM, marks=core),
    pytest.param("order", signal.SIGINT, marks=core), ("certificate", signal.SIGHUP)])
def test_a_signal_while_the_ca_is_silent(victim, stage, number):
    """It ends long before any timeout, at once."""
    assert victim.run({stage: victim.hit(number)}) == 128 + number, victim.err
    assert victim.leaves_nothing()


@core
def test_signals_until_the_end(victim):
    """Impatience does not stop the cleaning up, nor change the status at the last moment."""
    def flood(handler, data):
        """One signal each millisecond."""
        for number in itertools.cycle(SIGNALS):
            if victim.process.poll() is not None:
                break
            victim.process.send_signal(number)
            time.sleep(0.001)
    status = victim.run({"order": victim.hit(signal.SIGTERM, then=flood)})
    assert status in [128 + number for number in SIGNALS]
    assert victim.leaves_nothing()


def test_a_signal_between_two_looks(victim):
    """It ends while it sleeps, too."""
    def answer_first(handler, data):
        """Deliver the answer, then strike."""
        handler.wfile.write(data)
        threading.Timer(0.3, os.kill, (victim.process.pid, signal.SIGTERM)).start()

    def fault(request, reply):
        """Busy for long, and then a signal."""
        problem("rateLimited", 503, {"Retry-After": "100"})(request, reply)
        delivered(answer_first)(request, reply)
    assert victim.run({"order": fault}) == 128 + signal.SIGTERM
    assert victim.leaves_nothing()


@pytest.mark.parametrize("number, whom", [
    pytest.param(signal.SIGINT, "0", marks=core), (signal.SIGTERM, "$PPID")],
    ids=["openssl and it", "it alone"])
def test_a_signal_while_openssl_works(victim, tmp_path, number, whom):
    """With Ctrl-C the terminal tells openssl as well, which must not be taken for an error."""
    script = """
        [ $1 = dgst ] && echo >> {count}
        [ "$(wc -l < {count})" -lt 6 ] && exec $real "$@"
        kill -{number:d} {whom}
        exec sleep 20
        """.format(count=tmp_path / "count", number=number, whom=whom)
    (tmp_path / "count").touch()
    env = support.fake_openssl(tmp_path / "bin", script)
    assert victim.run({}, env=env) == 128 + number, victim.err
    assert victim.leaves_nothing()


@core
def test_nohup(victim):
    """Who starts it with nohup does not want it to stop when he leaves."""
    fault = victim.hit(signal.SIGHUP, then=faults.send_all)
    script = {stage: [fault] for stage in ("directory", "challenge", "certificate")}
    assert victim.run(script, wrapper=["nohup"]) == 0, victim.err
    assert len(pki.load_chain(victim.out.decode())) == 2


# ---- SIGKILL

# Runs the script and ends it at the Nth moment. Each line of it makes moments when it is first
# reached, and the next two times; without a moment to end at, it tells how many there were.
AT_A_MOMENT = """
import os, sys
sys.path.insert(0, {folder!r})
import letsacme
vars(letsacme).update({constants!r})
end, number = int(sys.argv[1]), int(sys.argv[2])
seen, moments = {{}}, [0]

def trace(frame, event, _):
    if not frame.f_code.co_filename.endswith("letsacme.py"):
        return None
    if event == "line":
        seen[frame.f_lineno] = seen.get(frame.f_lineno, 0) + 1
        if seen[frame.f_lineno] <= 3:
            moments[0] += 1
            if moments[0] == end:
                os.kill(os.getpid(), number)
    return trace

sys.settrace(trace)
try:
    status = letsacme.main(sys.argv[3:])
finally:
    sys.settrace(None)
if not end:
    sys.stdout.write("moments: %d" % moments[0])
sys.exit(status)
"""


class Renewal:
    """A renewal that is due, with all three outputs, to be ended at some moment."""

    def __init__(self, trial):
        self.trial, self.issuer = trial, pki.Issuer()
        key = pki.load_key(trial.key).public_key()
        parts = [pki.pem(self.issuer.leaf(trial.names, key, days=(-90, 1))),
                 pki.pem(self.issuer.intermediate)]
        names = ["cert.pem", "chain.pem", "fullchain.pem"]
        self.old = dict(zip(names, [*parts, b"".join(parts)]))
        trial.options.update({"--renew": True, "--fullchain-file": trial.site / "fullchain.pem"})

    def reset(self):
        """Put the old files there, and nothing else."""
        for path in [*self.trial.site.glob("*.pem*"), *self.trial.challenges.iterdir()]:
            path.unlink()
        for name, content in self.old.items():
            (self.trial.site / name).write_bytes(content)

    def now(self):
        """The contents of the outputs, each of which is whole."""
        contents = {name: (self.trial.site / name).read_bytes() for name in self.old}
        for name, content in contents.items():
            count = len(pki.load_chain(content.decode()))
            assert count == 1 + (name == "fullchain.pem"), name
        return contents

    def start(self, ca, moment, number=signal.SIGKILL):
        """Run it until that moment; return its status and what it printed."""
        code = AT_A_MOMENT.format(folder=str(support.SCRIPT.parent), constants=trials.WAITS)
        command = [*support.interpreter().command, "-c", code, str(moment), str(int(number)),
                   *map(str, self.trial.arguments()), "--ca", ca.directory]
        result = subprocess.run(command, env=self.trial.letsacme.environment(ca), timeout=60,
                                cwd=self.trial.folder, stdin=subprocess.DEVNULL,
                                capture_output=True)
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    def finish(self, ca):
        """Let the next run put everything right."""
        result = self.trial.letsacme(*self.trial.arguments(), ca=ca, constants=trials.WAITS)
        assert result.status in (0, 3), result.err
        now = self.now()
        assert now["fullchain.pem"] == now["cert.pem"] + now["chain.pem"]
        assert now["cert.pem"] != self.old["cert.pem"]

    def moments(self, ca, count):
        """That many moments: a third is spread over the whole run, the rest over its last fifth."""
        self.reset()
        status, out, err = self.start(ca, 0)
        assert status == 0, err
        total = int(out.partition("moments: ")[2])
        spread = [total * step // (count // 3) for step in range(1, count // 3)]
        rest = count - len(spread)
        return sorted(spread + [total - total * step // (5 * rest) for step in range(rest)])


@pytest.fixture
def renewal(trial):
    """A renewal that is due."""
    return Renewal(trial)


@pytest.mark.parametrize("part", range(2))
def test_killed_at_any_moment(renewal, part):
    """Every output is whole, old or new; the next run mends what was left half published."""
    states = set()
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        for moment in renewal.moments(ca, 24)[part::2]:
            renewal.reset()
            status, _, err = renewal.start(ca, moment)
            assert status == -signal.SIGKILL, (moment, err)
            # Which outputs are new, and what kinds of files are left besides?
            new = [name for name, content in renewal.now().items() if content != renewal.old[name]]
            left = {path.name[:5] if path.name[0] == "." else str(path.parent)
                    for path in renewal.trial.site.rglob("*") if path.name not in renewal.old}
            if (*new, *left) not in states:
                renewal.finish(ca)
            states.add((*new, *left))


def test_a_signal_at_any_moment(renewal):
    """As before, but what it had written besides is gone too."""
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        # Before the first moments are over, a signal means to Python what it likes.
        moments = [moment for moment in renewal.moments(ca, 12) if moment > 20]
        for moment, number in zip(moments, itertools.cycle(SIGNALS)):
            renewal.reset()
            names = sorted(trials.snapshot(renewal.trial.site))
            status, out, err = renewal.start(ca, moment, number)
            assert status in (0, 128 + number) and not out, (moment, status, err)
            support.judge_words(err)
            renewal.now()
            assert sorted(trials.snapshot(renewal.trial.site)) == names, moment
