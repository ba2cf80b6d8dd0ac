"""What a run leaves behind that is ended from outside: by a signal at any stage, or by SIGKILL."""
import contextlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import faults
import pki
import pytest
import support
import trials
from faults import delivered, problem

core = pytest.mark.core
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def kill(trial, number):
    """Send a signal to the run of run()."""
    os.kill(int((trial.folder / "pid").read_text()), number)


def hit(trial, number, then=faults.stay_silent):
    """A fault: send a signal while the run waits for an answer, which may never come."""
    def deliver(handler, data):
        time.sleep(0.1)                     # by then it waits
        kill(trial, number)
        then(handler, data)
    return delivered(deliver)


def run(trial, script, before=(), **options):
    """The status of a run that faults of the CA may kill; the trial sees that nothing is left."""
    tell = support.shell('echo $$ > pid && exec "$@"', *before)
    result = trial.run(script, wrapper=tell, **options)
    assert result.status == 0 or "E: ended by signal" in result.err
    return result.status


@pytest.mark.parametrize("stage, number", [
    ("directory", signal.SIGTERM), pytest.param("order", signal.SIGTERM, marks=core),
    pytest.param("order", signal.SIGINT, marks=core), ("certificate", signal.SIGHUP)])
def test_a_signal_while_the_ca_is_silent(trial, stage, number):
    """It ends long before any timeout, at once."""
    assert run(trial, {stage: hit(trial, number)}) == 128 + number


@core
def test_signals_until_the_end(trial):
    """Impatience does not stop the cleaning up, nor change the status at the last moment."""
    def flood(handler, data):
        with contextlib.suppress(ProcessLookupError):
            for number in itertools.cycle(SIGNALS):
                kill(trial, number)
                time.sleep(0.001)
    status = run(trial, {"order": hit(trial, signal.SIGTERM, then=flood)})
    assert status in [128 + number for number in SIGNALS]


def test_a_signal_between_two_looks(trial):
    """It ends while it sleeps, too."""
    def fault(request, reply):
        problem("rateLimited", 503, {"Retry-After": "7"})(request, reply)
        threading.Timer(0.5, kill, [trial, signal.SIGTERM]).start()
    assert run(trial, {"order": fault}) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number, whom", [
    pytest.param(signal.SIGINT, "0", marks=core), (signal.SIGTERM, "$PPID")],
    ids=["openssl and it", "it alone"])
def test_a_signal_while_openssl_works(trial, tmp_path, number, whom):
    """With Ctrl-C the terminal tells openssl as well, which must not be taken for an error."""
    script = """
        [ $1 = dgst ] && echo >> {count}
        [ "$(wc -l < {count})" -lt 6 ] && exec $real "$@"
        sleep 0.2  # before that Python 3.6, still starting it, would leave it behind with a warning
        kill -{number:d} {whom}
        exec sleep 20
        """.format(count=tmp_path / "count", number=number, whom=whom)
    (tmp_path / "count").touch()
    assert run(trial, {}, env=support.fake_openssl(tmp_path / "bin", script)) == 128 + number


def test_nohup(trial):
    """Who starts it with nohup does not want it to stop when he leaves."""
    fault = [hit(trial, signal.SIGHUP, then=faults.send_all)]
    script = dict.fromkeys(["directory", "challenge", "certificate"], fault)
    assert run(trial, script, before=["nohup"]) == 0


# Put before a command, runs that but ends it at the Nth moment: before a line of the script that
# has some words in it, when that is reached for the first time, or the next two times.
AT_A_MOMENT = """
import collections, os, re, sys
script, *arguments = sys.argv[4:]
sys.path.insert(0, os.path.dirname(script))
import letsacme
vars(letsacme).update({constants!r})
with open(letsacme.__file__, encoding="utf-8") as source:
    chosen = {{number for number, line in enumerate(source, 1) if re.search({words!r}, line)}}
seen = collections.Counter()

def trace(frame, event, _):
    if frame.f_code.co_filename != letsacme.__file__:
        return None
    if event == "line" and frame.f_lineno in chosen and seen[frame.f_lineno] < 3:
        seen[frame.f_lineno] += 1
        if sum(seen.values()) == {moment}:
            os.kill(os.getpid(), {signal})
    return trace

sys.settrace(trace)
sys.exit(letsacme.main(arguments))
"""
# What lines have in them that change a file system
CHANGES = r"'x'|\.(write|truncate)\(|os\.(makedirs|remove|rename|open|chown|chmod|fsync)\("


class Renewal:
    """A renewal that is due, with all three outputs, to be ended at some moment."""

    def __init__(self, trial):
        self.trial, self.issuer = trial, pki.Issuer()
        trial.to_renew(self.issuer)
        fullchain = trial.options["--fullchain-file"]
        cert, chain = map(pki.pem, pki.load_chain(fullchain.read_text()))
        self.old = {trial.cert: cert, trial.chain: chain, fullchain: cert + chain}

    def end(self, ca, words, moment, number):
        """From the old files, run it until a moment."""
        for path in filter(Path.is_file, self.trial.site.rglob("*")):
            path.unlink()
        for path, content in self.old.items():
            path.write_bytes(content)
        code = AT_A_MOMENT.format(constants=trials.WAITS, words=words, moment=moment,
                                  signal=int(number))
        # A signal may come just before a connection is closed, which is then left to the system.
        wrapper = [*support.interpreter().command, "-W", "ignore::ResourceWarning", "-c", code]
        return self.trial.letsacme(*self.trial.arguments(), ca=ca, wrapper=wrapper)

    def now(self):
        """Which outputs are new; each is whole."""
        for path in self.old:
            assert len(pki.load_chain(path.read_text())) == 1 + (path.name == "fullchain.pem")
        return [path for path, content in self.old.items() if path.read_bytes() != content]


def test_killed_before_any_change_of_files(trial):
    """Every output is whole, old or new; the next run mends what was left half published."""
    renewal, states = Renewal(trial), set()
    with trial.serve(issuer=renewal.issuer) as ca:
        for moment in itertools.count(1):
            result = renewal.end(ca, CHANGES, moment, signal.SIGKILL)
            if result.status == 0:
                break
            assert result.status == -signal.SIGKILL, (moment, result.err)
            # Which outputs are new, and what kinds of files are left besides?
            left = {path.name[:5] if path.name[0] == "." else path.parent
                    for path in trial.site.rglob("*") if path not in renewal.old}
            state = (*renewal.now(), *left)
            if state not in states:
                result = trial.letsacme(*trial.arguments(), ca=ca, constants=trials.WAITS)
                assert result.status in (0, 3), result.err
                cert, chain, fullchain = [path.read_bytes() for path in renewal.old]
                assert fullchain == cert + chain and trial.cert in renewal.now()
            states.add(state)
    assert moment > 25 and len(states) >= 3


def test_a_signal_at_any_moment(trial):
    """As before, but what it had written besides is gone too."""
    renewal = Renewal(trial)
    with trial.serve(issuer=renewal.issuer) as ca:
        # Before the 20th moment, a signal means to Python what it likes.
        for moment, number in zip(itertools.count(20, 80), itertools.cycle(SIGNALS)):
            result = renewal.end(ca, "", moment, number)
            assert result.status in (0, 128 + number) and not result.out, (moment, result)
            renewal.now()
            assert set(trial.site.rglob("*")) == {trial.challenges, *renewal.old}
            if result.status == 0:
                break
    assert moment > 500
