"""Wrong usage, help and version, under every Python (see also test_parsing.py, test_words.py)."""
import re

import pytest

pytestmark = pytest.mark.quick
core = pytest.mark.core
OPTIONS = """account-key acme-dir ca cert-file chain-file check-port config-json contact csr
    directory-url disable-check eab-hmac-key eab-kid force fullchain-file help no-cert no-chain
    profile quiet renew test version"""


@core
@pytest.mark.parametrize("words", [["--bogus"], ["--config-json", "{'a': 1}"]], ids=" ".join)
def test_wrong_usage(letsacme, words):
    """It is told in a line, which names what is wrong, and the exit status is 2."""
    result = letsacme(*words)
    assert result.status == 2 and re.fullmatch("E: .*%s.*\n" % words[0], result.err)


@core
def test_help_and_version(letsacme):
    """-h tells every option in 80 columns, and comes as usage where nothing was asked for."""
    result = letsacme("-h")
    assert (result.status, result.err) == (0, "") and letsacme("--help") == result
    assert max(map(len, result.out.splitlines())) <= 80
    assert set(re.findall("--[a-z-]+", result.out)) == {"--" + word for word in OPTIONS.split()}
    usage = letsacme()
    assert (usage.status, usage.out, usage.err) == (2, "", result.out)
    version = letsacme("--version")
    assert (version.status, version.err) == (0, "")
    assert re.fullmatch(r"(letsacme )?\d+(\.\d+)+\n", version.out)
