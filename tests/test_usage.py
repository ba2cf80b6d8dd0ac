"""Wrong usage, help and version, under every Python (see also test_parsing.py, test_words.py)."""
import re

import pytest

pytestmark = [pytest.mark.quick, pytest.mark.core]


@pytest.mark.parametrize("words", [["--bogus"], ["--config-json", "{'a': 1}"]], ids=" ".join)
def test_wrong_usage(letsacme, words):
    """It is told in a line, which names what is wrong, and the exit status is 2."""
    result = letsacme(*words)
    assert result.status == 2 and re.fullmatch("E: .*%s.*\n" % words[0], result.err)


def test_help_and_version(letsacme):
    """-h tells the options (see test_budget.py) in 80 columns; it is the usage as well."""
    result = letsacme("-h")
    assert (result.status, result.err) == (0, "") and letsacme("--help") == result
    assert max(map(len, result.out.splitlines())) <= 80 and "\n  --csr FILE " in result.out
    usage, version = letsacme(), letsacme("--version")
    assert (usage.status, usage.out, usage.err) == (2, "", result.out)
    assert (version.status, version.err) == (0, "")
    assert re.fullmatch(r"(letsacme )?\d+(\.\d+)+\n", version.out)
