"""The openssl command fails, lies, hangs, or is a wrapper; account keys with a password."""
import contextlib
import os
import pty
import signal

import pytest
from pki import write_key
from support import fake_openssl

core = pytest.mark.core


@pytest.mark.parametrize("script, said", [
    ("printf 'no \\033[31mluck\\n' >&2; yes no | head -c 1000000 >&2; exit 1", "no ?[31mluck"),
    ("kill -9 $$", ""), ("printf '\\060\\003\\002'", ""),
    ("printf '\\060\\003\\002\\001\\001'", ""),
    ('if [ $1 = pkey ]; then exec $real "$@" -ec_conv_form compressed; fi\nexec $real "$@"', "")],
    ids=["says why and much", "is killed", "cuts", "says too little", "gives a compressed point"])
def test_openssl_fails(trial, tmp_path, script, said):
    """It cannot read the key, or gives what cannot be a JWK: the error names the key's file."""
    trial.refused("account.key", said, env=fake_openssl(tmp_path / "bin", script))


@pytest.mark.parametrize("failure", ["exit 1", "printf nonsense", "head -c 100000 /dev/zero"])
def test_openssl_fails_to_sign(trial, tmp_path, failure):
    """It can read the key; what it gives as a signature may be found out by the CA alone."""
    script = 'if [ $1 != dgst ]; then exec $real "$@"; fi\n' + failure
    trial.fails(None, ca={"forgive": True}, env=fake_openssl(tmp_path / "bin", script))


def test_openssl_is_slow(trial, tmp_path):
    """It may be a shell script, which talks while all is well, and slower than a socket may be."""
    script = '[ $1 = pkey ] && sleep 1.2\necho "using $real" >&2\n$real "$@"'
    trial.works(waits={"ANSWER_TIMEOUT": 1}, env=fake_openssl(tmp_path / "bin", script))


def test_openssl_hangs(trial, tmp_path):
    """The bound of the whole run ends it too, be it as stubborn as can be."""
    pids, survivors = tmp_path / "pids", []
    script = "echo $$ >> %s\ntrap '' TERM\nwhile :; do sleep 0.1; done" % pids
    try:
        trial.fails(None, waits={"LONGEST_RUN": 1.5}, env=fake_openssl(tmp_path / "bin", script))
    finally:
        for pid in pids.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
                survivors.append(pid)
    assert not survivors


@pytest.mark.parametrize("kind", ["encrypted", pytest.param("encrypted-old", marks=core)])
def test_no_prompt_for_a_password(trial, tmp_path, kind):
    """Not even with a terminal at hand, which openssl would open by itself."""
    encrypted = write_key(tmp_path / "locked.key", kind)
    master, terminal = pty.openpty()
    trial.refused("locked.key", "password", args={"--account-key": encrypted}, stdin=terminal,
                  wrapper=["setsid", "--ctty", "--wait"])    # which makes it the controlling one
    os.set_blocking(master, False)
    with pytest.raises(BlockingIOError):    # nothing was written to the terminal
        os.read(master, 1000)
    os.close(terminal)
    os.close(master)
