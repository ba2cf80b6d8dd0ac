"""What a run leaves behind that is ended from outside: by a signal at any stage, or by SIGKILL."""
import os
import signal
import subprocess
import threading
import time

import pytest
import scripted_ca
import support
from scripted_ca import elsewhere, problem

trial = scripted_ca.trial
core = pytest.mark.core

STAGES = ["directory", "newNonce", "newAccount", "newOrder", "authz", "challenge", "order",
          "finalize", "certificate"]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Victim:
    """A run of letsacme.py that a fault can hit."""

    def __init__(self, trial):
        self.trial, self.before = trial, scripted_ca.snapshot(trial.site)
        self.process, self.ready = None, threading.Event()

    def hit(self, *numbers, then=scripted_ca.stay_silent):
        """A fault: send the signals while the run waits for an answer, which may never come."""
        def deliver(handler, data):
            self.ready.wait(60)
            # By then it waits. (A signal within http.client's own code may make Python complain.)
            time.sleep(0.1)
            for number in numbers:
                os.kill(self.process.pid, number)
            then(handler, data)
        return elsewhere(deliver)

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
        assert "Traceback" not in self.err and "Warning:" not in self.err, self.err
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
    *(pytest.param("order", number, marks=core) for number in SIGNALS),
    *((stage, signal.SIGTERM) for stage in STAGES if stage != "order"),
    ("challenge", signal.SIGINT), ("certificate", signal.SIGHUP)])
def test_a_signal_while_the_ca_is_silent(victim, stage, number):
    """Long before any timeout, at once."""
    assert victim.run({stage: victim.hit(number)}) == 128 + number, victim.err
    assert victim.leaves_nothing()


@core
def test_signals_upon_signals(victim):
    """Impatience does not stop the cleaning up."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGINT]
    assert victim.run({"order": victim.hit(*numbers)}) in [128 + number for number in SIGNALS]
    assert victim.leaves_nothing()


def test_signals_until_the_end(victim):
    """Another signal does not change the status, up to the process's last moment."""
    def flood(handler, data):
        """One signal each millisecond."""
        while victim.process.poll() is None:
            victim.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
    assert victim.run({"order": victim.hit(signal.SIGTERM, then=flood)}) == 128 + signal.SIGTERM
    assert victim.leaves_nothing()


def test_a_signal_between_two_looks(victim):
    """While it sleeps."""
    def answer_first(handler, data):
        """Deliver the answer, then strike."""
        handler.wfile.write(data)
        threading.Timer(0.3, os.kill, (victim.process.pid, signal.SIGTERM)).start()
    fault = elsewhere(answer_first)
    busy = problem("rateLimited", 503, {"Retry-After": "100"})

    def script(request, reply):
        """Busy for long, and then a signal."""
        busy(request, reply)
        fault(request, reply)
    assert victim.run({"order": script}) == 128 + signal.SIGTERM
    assert victim.leaves_nothing()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("whom", ["openssl and it", "it alone"])
@pytest.mark.usefixtures("warnings_off")
def test_a_signal_while_openssl_works(victim, tmp_path, number, whom):
    """With Ctrl-C the terminal tells openssl as well, which must not be taken for an error."""
    script = """
        [ $1 = dgst ] && echo >> {count}
        [ "$(wc -l < {count})" -lt 6 ] && exec $real "$@"
        kill -{number:d} {whom}
        exec sleep 20
        """.format(count=tmp_path / "count", number=number,
                   whom="$PPID" if whom == "it alone" else "0")
    (tmp_path / "count").touch()
    env = support.fake_openssl(tmp_path / "bin", script)
    assert victim.run({}, env=env, start_new_session=True) == 128 + number, victim.err
    assert victim.leaves_nothing()


def test_nohup(victim):
    """Who starts it with nohup does not want it to stop when he leaves."""
    fault = victim.hit(signal.SIGHUP, then=scripted_ca.send_all)
    status = victim.run({stage: [fault] for stage in STAGES}, wrapper=["nohup"])
    assert status == 0, victim.err
    assert len(support.load_chain(victim.out.decode())) == 2


# ---- SIGKILL

# Runs the script and ends it at the Nth moment. Each line of it makes moments when it is first
# reached, and the next two times; without a moment to end at, it tells how many there were.
AT_A_MOMENT = """
import os, sys
sys.path.insert(0, {top!r})
import letsacme
letsacme.SECOND = 0.05
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
        self.trial, self.issuer = trial, scripted_ca.Issuer()
        key = support.load_key(trial.key).public_key()
        old = self.issuer.leaf(trial.names, key, days=(-90, -1))
        parts = [scripted_ca.pem(old), scripted_ca.pem(self.issuer.intermediate)]
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
            count = len(support.load_chain(content.decode()))
            assert count == 1 + (name == "fullchain.pem"), name
        return contents

    def start(self, ca, moment, number=signal.SIGKILL):
        """Run it until that moment; return its status and what it printed."""
        code = AT_A_MOMENT.format(top=str(support.TOP))
        command = [*support.interpreter().command, "-c", code, str(moment), str(int(number)),
                   *map(str, self.trial.arguments()), "--ca", ca.directory]
        result = subprocess.run(command, env=self.trial.letsacme.environment(ca), timeout=60,
                                cwd=self.trial.folder, stdin=subprocess.DEVNULL,
                                capture_output=True)
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    def finish(self, ca):
        """Let the next run put everything right."""
        result = self.trial.letsacme(*self.trial.arguments(), ca=ca, scale=0.05)
        assert result.status in (0, 3), result.err
        now = self.now()
        assert now["fullchain.pem"] == now["cert.pem"] + now["chain.pem"]
        assert now["cert.pem"] != self.old["cert.pem"]


@pytest.fixture
def renewal(trial):
    """A renewal that is due."""
    return Renewal(trial)


def moments(renewal, ca, count):
    """That many moments: one half spread over the whole run, the other over its last third."""
    renewal.reset()
    status, out, err = renewal.start(ca, 0)
    assert status == 0, err
    total = int(out.partition("moments: ")[2])
    spread = [1 + total * step // (count // 2) for step in range(count // 2)]
    end = [total - total * step // (3 * count // 2) for step in range(count - count // 2)]
    return sorted(spread + end)


SLICES = 5


@pytest.mark.parametrize("part", [pytest.param(part, marks=[core] * (not part))
                                  for part in range(SLICES)])
def test_killed_at_100_moments(renewal, part):
    """Every output is whole, old or new; the next run mends what was left half published."""
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        for number, moment in enumerate(moments(renewal, ca, 100)[part::SLICES]):
            renewal.reset()
            before = scripted_ca.snapshot(renewal.trial.site)
            status, _, err = renewal.start(ca, moment)
            assert status == -signal.SIGKILL, (moment, err)
            renewal.now()
            if number % 5 == 0 or scripted_ca.snapshot(renewal.trial.site) != before:
                renewal.finish(ca)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_at_10_moments(renewal, number):
    """As before, but what it had written besides is gone too."""
    with renewal.trial.serve(issuer=renewal.issuer) as ca:
        started = 20                        # before that, a signal means to Python what it likes
        for moment in [each for each in moments(renewal, ca, 10) if each > started]:
            renewal.reset()
            names = sorted(scripted_ca.snapshot(renewal.trial.site))
            status, out, err = renewal.start(ca, moment, number)
            assert status in (0, 128 + number, -number) and not out, (moment, status, err)
            assert "Traceback" not in err, (moment, err)
            renewal.now()
            assert sorted(scripted_ca.snapshot(renewal.trial.site)) == names, moment
