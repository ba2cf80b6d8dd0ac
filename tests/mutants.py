#!/usr/bin/env python3
"""Do the tests notice? Breaks letsacme.py in one place at a time, and runs the tests that should.

    python3 tests/mutants.py [WORD ...]     all mutants, or those with these words in them

It needs what the tests need, which is there after sh tests/run.sh, and takes some minutes. A
mutant that survives is a gap in the tests; one whose text is gone from letsacme.py belongs out of
the list, or changed.
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
PYTHON = TOP / ".tox" / "tests" / "bin" / "python"  # which has pytest and the like
# Each is: what breaks, the old text, the new one, and the tests that are to notice: test_*.py, and
# perhaps a word of its tests. If those do not, all quick tests are run.
MUTANTS = [
    # challenge files
    ("what lies in wait is written to", "open(path, 'x')", "open(path, 'w')", "parsing comes_back"),
    ("the user's umask hides the files", "os.umask(0o022)", "pass", "files umask"),
    ("a file is not removed at the end", "        remove(*TEMPORARY)\n\n", "        pass\n\n",
     "protocol all_is_well"),
    ("a directory gives way without --force", "if force and os.path.isdir", "if os.path.isdir",
     "files name_of_the_token"),
    ("a short token will do", "{22,200}", "{2,200}", "parsing token"),
    ("any token becomes part of a path", "[A-Za-z0-9_-]{22,200}", "[^ ]{22,200}", "parsing token"),
    ("a token may end in a line end", "re.fullmatch('[A-Za-z0-9_-]{22,200}', token)",
     "re.match('[A-Za-z0-9_-]{22,200}$', token)", "parsing token"),
    ("the self check is left out", "if not settings.disable_check:", "if False:", "site wrong"),
    ("the self check takes any page", "require(found == content", "require(found", "site wrong"),
    ("the self check minds old certificates", "ssl._create_unverified_context()",
     "ssl.create_default_context()", "pebble command_lines"),
    # the CA's connection
    ("TLS is not verified", "self.tls = ssl.create_default_context()",
     "self.tls = ssl._create_unverified_context()", "network tls"),
    ("http will do", "r'https://((", "r'https?://((", "words words"),
    ("a bad certificate is tried again", "final or 'CERTIFICATE_VERIFY_FAILED' in str(error)",
     "False", "network tls"),
    ("a connection is not kept", "if not reached:", "if True:", "protocol all_is_well"),
    ("a lost connection is not opened anew", "if not reached:", "if False:", "network closed"),
    ("a GET has a type", "'application/jose+json'} if body else USER_AGENT",
     "'application/jose+json'}", "protocol all_is_well"),
    ("an answer that is cut will do", "if response.length:", "if False:", "network cut"),
    ("an answer of any length is read", "response.read(MOST_BYTES + 1)", "response.read()",
     "ways too_long"),
    ("a bad nonce is used", "re.fullmatch('[A-Za-z0-9_-]+', nonce)", "True", "protocol nonce"),
    ("a nonce is used twice", "        self.nonce = None\n        return", "        return",
     "network reset"),
    ("one refused nonce is an error", "tries < 100", "tries < 1", "protocol nonces_are"),
    ("refused nonces go on for ever", "tries < 100", "True", "parsing hundred"),
    # what the CA says
    ("a certificate for another key is taken", "chain[0].public_key == csr.public_key", "True",
     "parsing wrong_cert"),
    ("a certificate without a name is taken", "csr.names.keys() - chain[0].names.keys()", "()",
     "parsing wrong_cert"),
    ("what was not ordered is proved", "name in directories, f'the CA", "True, f'the CA",
     "lies somewhere"),
    ("what is valid is proved again", "if authorization['status'] == 'valid':", "if False:",
     "protocol proved_already"),
    ("a failed authorization is waited for", "and authorization.has_failed():", "and False:",
     "ways failure"),
    ("an error in a pending challenge is none", "self.get('status') == 'pending' and", "False and",
     "ways failure"),
    ("a failed challenge is waited for", "DOUBT_PATIENCE if in_doubt else WORK_PATIENCE",
     "WORK_PATIENCE", "ways failure"),
    ("a challenge must be answered", "    answer = ca.ask(url, {})\n",
     "    answer = ca.ask(url, {}).accepted()\n", "ways is_lost"),
    ("the CA's first words are lost", "{complaint}{order.words()}", "{order.words()}",
     "ways finalize"),
    ("a refusal of finalize is the end", "        if order.code >= 300:",
     "        if order.accepted() is None:", "protocol though_it_worked"),
    ("an order is taken without certificate", "and not order.get('certificate')",
     "and False", "ways without_a_certificate"),
    ("subproblems are not told", "each.objects('subproblems')", "[]", "protocol refusal"),
    ("control characters get into the log", "letter.isprintable()", "True", "lies escape"),
    ("the CA's words are not cut", "[:4000]", "", "parsing cut"),
    # waiting
    ("a validation is given a minute", "WORK_PATIENCE = 600", "WORK_PATIENCE = 60",
     "parsing constants"),
    ("pauses do not grow", "1.3 * pause", "pause", "parsing pauses"),
    ("pauses grow beyond the bound", ", FIRST_PAUSE), LONGEST_PAUSE)", ", FIRST_PAUSE), 1e9)",
     "parsing pauses"),
    ("a run may last for ever", "signal.setitimer(signal.ITIMER_REAL, LONGEST_RUN)", "pass",
     "network drips"),
    ("a long Retry-After is waited for", "if wait >= left:", "if False:", "protocol week"),
    ("an order is waited for as the CA says", "min(self.retry_after() or 0, LONGEST_POLL_PAUSE)",
     "self.retry_after() or 0", "ways patience"),
    ("a date in Retry-After is ignored", "parsedate_tz(value)", "None", "parsing retry"),
    # keys and JOSE
    ("a compressed point is taken", "bits[1:2] == UNCOMPRESSED", "True", "openssl compressed"),
    ("openssl asks for a password", ", '-passin', 'pass:none']", "]", "openssl prompt"),
    ("openssl's failure is overlooked", "require(done.returncode == 0,", "require(True,",
     "openssl fails"),
    ("numbers of a signature are not padded", ".rjust(self.size, b'\\0')", "", "parsing sign"),
    ("a modulus keeps its zero", "b64(number.lstrip(b'\\0'))", "b64(number)", "parsing thumb"),
    ("a thumbprint has spaces", ", separators=(',', ':')", "", "parsing thumb"),
    ("the account key signs the CSR", "key.public_key != csr.public_key", "True", "words"),
    ("the pair is sent at once", "if settings.eab_kid else account)", "if False else account)",
     "ways looked_up"),
    # requests and certificates
    ("a wildcard is ordered", "require('*' not in name", "require(True", "parsing cannot_be_had"),
    ("any name is ordered", "require(host or identifier['type'] == 'ip'", "require(True",
     "parsing cannot_be_had"),
    ("cut DER is taken", "        require(len(content) == length, 'DER that is cut short')\n", "",
     "parsing elements"),
    ("a key among certificates is taken", "'-----BEGIN (?:NEW )?([A-Z0-9 ]*)-----",
     "f'-----BEGIN (?:NEW )?({label})-----",
     "parsing wrong_cert"),
    # renewal
    ("the lifetime decides too late", "/ (2 if lifetime < 10 * 86400 else 3)", "/ 10",
     "renewal life"),
    ("the whole window is used", "share * (end - start) / 2", "share * (end - start)",
     "renewal window"),
    ("a window near the end counts", "old.ends - lifetime / 10)", "old.ends)", "renewal window"),
    ("another key is not due", " or csr.public_key != old.public_key", "", "renewal due_by"),
    ("an expired certificate is asked about", "old.self_signed or old.ends <= time.time()",
     "old.self_signed", "renewal of_no_use"),
    ("a rate limit is met by another order", " or answer.problem == 'rateLimited'", "",
     "ways replaces"),
    # files
    ("an output is not flushed", "        os.fsync(file.fileno())\n", "", "parsing on_the_disk"),
    ("the mode of an output is lost", "os.chmod(file.fileno(), old.st_mode & 0o7777)", "pass",
     "outputs in_one_step"),
    ("the owner of an output is lost", "os.chown(file.fileno(), old.st_uid, old.st_gid)", "pass",
     "outputs in_one_step"),
    ("a link is followed by an overwriting", "os.O_NOFOLLOW | ", "", "outputs planted"),
    ("a longer output keeps its end", "        file.truncate()", "        file.flush()",
     "outputs in_place"),
    ("a mounted file is replaced", " or is_mounted(path)", "", "outputs mounted"),
    ("anything is overwritten", "re.fullmatch(CERTIFICATES, read_file(path))", "True",
     "outputs refused"),
    ("two outputs may be one", "path not in outputs.values()", "True", "outputs refused"),
    ("outputs are written in a dry run", "{} if settings.mode else outputs", "outputs",
     "pebble dry_run"),
    ("an empty output is not missed", "os.path.getsize(path))", "True)", "renewal what_is_asked"),
    # settings and secrets
    ("a secret gets into the log", " else '(not shown)'", " else name", "parsing settings"),
    ("a key gets into the log", "'\\n' not in settings.account_key + settings.csr", "True",
     "parsing settings"),
    ("an unknown key is overlooked", "require(key in KEYS, ", "require(True, ", "parsing settings"),
    ("wrong usage has status 1", "status = 2  #", "status = 1  #", "usage wrong_usage"),
    ("nohup does not help", "if signal.getsignal(number) != signal.SIG_IGN:", "if True:",
     "crashes nohup"),
]


def run(script, tests):
    """Run tests (see MUTANTS) against a script; return the first that fails, None if all pass."""
    file, *word = tests.split()
    words = ["tests/test_%s.py" % file, "-k", word[0] if word else ""]
    if tests == "quick":
        words = ["-m", "quick", "tests", "--ignore=tests/test_budget.py"]
    python = PYTHON if PYTHON.exists() else sys.executable
    command = [python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rfE", *words]
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
