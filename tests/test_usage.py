"""Wrong usage, help and version, as a person gets them: quick, and under every Python."""
import re

import pytest

pytestmark = pytest.mark.quick
core = pytest.mark.core


@core
@pytest.mark.parametrize("arguments, words", [
    (["--account-key", "account.key"], "--csr"),
    (["--bogus"], "--bogus"), (["--acc", "x"], "--acc"), (["leftover"], "leftover"),
    (["--csr"], "--csr"), (["--quiet=yes"], "--quiet"), (["--check-port", "x"], "--check-port"),
    (["--eab-kid", "x"], "--eab-hmac-key"), (["--eab-hmac-key=x", "--eab-kid=x"], "base64url"),
    (["--config-json", "none.json"], "none.json"), (["--config-json", "{'a': 1}"], "--config-json"),
    (["--config-json", '{"Acount-Key": "x"}'], "Acount-Key"),
    (["--renew"], "--fullchain-file"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_usage(arguments, words, letsacme):
    """It is told in a line, which names what is wrong, and the exit status is 2."""
    needed = [] if "account.key" in arguments else ["--account-key", "x", "--csr", "x"]
    result = letsacme(*needed, *arguments)
    assert result.status == 2
    assert re.fullmatch("E: .*%s.*\n" % re.escape(words), result.err)


@pytest.mark.parametrize("arguments", [
    ["--eab-hmac-key", "SECRET"], ["--eab-hmac-key=-SECRET"], ["--eab-kid", "x", "SECRET"],
    *(["--config-json", '{"EabHmacKey": "SECRET"' + tail] for tail in (
        "}", ",}", ', "Bogus": 1}', ', "EabKid": 5.5}', "", "} --bogus")),
    ["--config-json", '{"EabHmacKey": ["SECRET"]}'], ["--config-json", '{"SECRET": 1}x']], ids=str)
def test_secrets_are_not_told(letsacme, arguments):
    """Whatever is wrong around it, a key for external account binding does not get into a log."""
    secret = "VGhpcyBpcyBhIHNlY3JldA=="
    result = letsacme("--account-key", "x", *[word.replace("SECRET", secret) for word in arguments])
    assert result.status == 2 and secret[:9] not in result.err and "E: " in result.err


@core
def test_help_and_version(letsacme):
    """-h tells every option in 80 columns, and comes as usage where nothing was asked for."""
    result = letsacme("-h")
    assert (result.status, result.err) == (0, "") and letsacme("--help") == result
    assert max(map(len, result.out.splitlines())) <= 80
    for option in ("account-key", "csr", "config-json", "acme-dir", "cert-file", "chain-file",
                   "quiet", "ca", "no-chain", "no-cert", "force", "test", "version",
                   "directory-url", "contact", "disable-check", "check-port",
                   "fullchain-file", "renew", "profile", "eab-kid", "eab-hmac-key"):
        assert re.search(r"--%s\b" % option, result.out), option
    usage = letsacme()
    assert (usage.status, usage.out, usage.err) == (2, "", result.out)
    version = letsacme("--version")
    assert (version.status, version.err) == (0, "")
    assert re.fullmatch(r"(letsacme )?\d+(\.\d+)+\n", version.out)
