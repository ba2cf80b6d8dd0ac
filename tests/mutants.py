#!/usr/bin/env python3
"""Do the tests notice? Breaks letsacme.py in one place at a time, and runs the tests that should.

    python3 tests/mutants.py [WORD ...]     all mutants, or those with these words in them

It needs what the tests need (see run.sh), and takes some minutes. A mutant that survives is a gap
in the tests; one whose text is gone from letsacme.py belongs out of the list, or changed.
"""
import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SCRIPT = TOP / "letsacme.py"
# Each is: what breaks, the old text, the new one, and the tests that are to notice (a file, or a
# file and a word of its tests). If those do not, all quick tests are run.
MUTANTS = [
    # challenge files
    ("a file or link that lies in wait is written to", "open(path, 'x')", "open(path, 'w')",
     "test_parsing comes_back"),
    ("the umask of the user hides the files", "os.umask(0o022)", "pass", "test_files umask"),
    ("a short token will do", "{22,200}", "{2,200}", "test_lies token"),
    ("any token becomes part of a path", "[A-Za-z0-9_-]{22,200}", "[^ ]{22,200}",
     "test_lies token"),
    ("a token may end in a line end", r"{22,200}\Z", "{22,200}$", "test_lies token"),
    # what the CA sends
    ("TLS is not verified", "ssl.create_default_context()", "ssl._create_unverified_context()",
     "test_network tls"),
    ("a certificate for another key is taken", "chain[0].public_key == csr.public_key", "True",
     "test_lies wrong"),
    ("a certificate without a name is taken", "csr.names.keys() - chain[0].names.keys()", "()",
     "test_lies wrong"),
    ("what was not ordered is proved", "name in directories, f'the CA", "True, f'the CA",
     "test_lies another_name"),
    ("an answer of any length is read", "response.read(MOST_BYTES + 1)", "response.read()",
     "test_ways too_long"),
    ("control characters get into the log", "letter.isprintable()", "True", "test_lies escape"),
    ("the CA's words are not cut", "[:4000]", "", "test_protocol cut"),
    # waiting
    ("a validation is given a minute", "WORK_PATIENCE = 600", "WORK_PATIENCE = 60",
     "test_parsing constants"),
    ("pauses do not grow", "1.3 * self.pause", "self.pause", "test_parsing patience"),
    ("a run may last for ever", "signal.setitimer(signal.ITIMER_REAL, LONGEST_RUN)", "pass",
     "test_network drips"),
    ("one refused nonce is an error", "bad_nonces < 100", "bad_nonces < 1",
     "test_protocol nonces_are_refused"),
    ("a long Retry-After is waited for", "if seconds > left:", "if False:", "test_protocol week"),
    # keys
    ("a compressed point is taken", "bits[:1] == UNCOMPRESSED", "True", "test_openssl compressed"),
    ("openssl asks for a password", ", '-passin', 'pass:none']", "]", "test_openssl prompt"),
    ("numbers of a signature are not padded", ".rjust(self.size, b'\\0')", "",
     "test_protocol nonces_are_refused"),
    # files
    ("an output is not flushed", "os.fsync(file.fileno())", "pass", "test_parsing on_the_disk"),
    ("the mode of an output is lost", "os.chmod(file.fileno(), old.st_mode & 0o7777)", "pass",
     "test_outputs mode"),
    ("a link is followed when an output is overwritten", " | os.O_NOFOLLOW", "",
     "test_outputs link"),
    # secrets
    ("a secret gets into the log", r"re.sub(r'[\w+/-]{20,}', '(not shown)', name)", "name",
     "test_usage secrets"),
]


def run(script, tests):
    """Run tests (see MUTANTS) against a script; return the first that fails, None if all pass."""
    file, *word = tests.split()
    words = ["tests/%s.py" % file, "-k", word[0] if word else ""]
    if tests == "quick":
        words = ["-m", "quick", "tests", "--ignore=tests/test_budget.py"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rfE", *words]
    done = subprocess.run(command, env=dict(os.environ, LETSACME_SCRIPT=str(script)), cwd=TOP,
                          capture_output=True, text=True)
    failed = re.search("^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.M)
    assert failed or done.returncode == 0, done.stdout + done.stderr
    return failed and failed.group(1)


@functools.cache
def failing(tests):
    """Return which of these tests fails without any mutant, and so proves nothing."""
    return run(SCRIPT, tests)


def judge(source, old, new, tests):
    """Return what becomes of a mutant."""
    if source.count(old) != 1:
        return "GONE: its text is there %d times" % source.count(old)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "letsacme.py")
        script.write_text(source.replace(old, new), encoding="utf-8")
        for each in (tests, "quick"):
            killer = run(script, each)
            if killer and killer == failing(each):
                return "UNKNOWN: %s fails anyway" % killer
            if killer:
                return "killed by " + killer
    return "SURVIVED"


def main(words):
    """Judge the mutants; return 1 if one has survived, or is gone."""
    source = SCRIPT.read_text(encoding="utf-8")
    chosen = [each for each in MUTANTS if all(word in " ".join(each) for word in words)]
    fates = []
    for what, *mutant in chosen:
        fates.append(judge(source, *mutant))
        print("%-50s %s" % (what, fates[-1]), flush=True)
    killed = sum(fate.startswith("killed") for fate in fates)
    print("%d of %d mutants killed" % (killed, len(fates)))
    return killed < len(fates)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
