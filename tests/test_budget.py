"""The size of letsacme.py, and that README.md tells the truth about it and about its options."""
import ast
import re

import pytest
import support

pytestmark = pytest.mark.quick
SOURCE = support.SCRIPT.read_text(encoding="utf-8")
README = (support.TOP / "README.md").read_text(encoding="utf-8")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
# All that may have a docstring: the module, its classes and functions
DOCUMENTED = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, FUNCTIONS)]


def code_lines():
    """How many lines are not blank, nor only a comment, nor in a docstring."""
    lines = dict(enumerate(SOURCE.splitlines(), 1))
    for node in DOCUMENTED:
        if ast.get_docstring(node) is not None:
            for number in range(node.body[0].lineno, node.body[0].end_lineno + 1):
                del lines[number]
    return sum(line.strip()[:1] not in ("", "#") for line in lines.values())


def test_size():
    """The script can be read in one sitting, and README.md gives its true size."""
    lines = SOURCE.splitlines()
    assert code_lines() <= 706
    assert len(lines) <= 948
    assert max(map(len, lines)) <= 100
    told = re.findall(r"(\d+)\s+lines\s+of\s+code", README)
    assert told and set(told) == {str(code_lines())}


def test_functions():
    """All have a docstring, but for methods that Python itself has named, and no more than four
    parameters, self aside."""
    bare = [getattr(node, "name", "module") for node in DOCUMENTED if not ast.get_docstring(node)]
    assert not [name for name in bare if not name.startswith("__")]
    for node in DOCUMENTED:
        if isinstance(node, ast.FunctionDef):
            names = [each.arg for each in node.args.args + node.args.kwonlyargs]
            assert len(set(names) - {"self"}) <= 4, node.name


def test_options_in_readme(letsacme):
    """The options in README.md's table (its first column is headed "Option") are those of -h."""
    (table,) = re.findall(r"^\| *Option *\|.*\n((?:\|.*\n)+)", README, re.M)
    first_column = "\n".join(row.split("|")[1] for row in table.splitlines())
    shown, told = (set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
                   for text in (first_column, letsacme("-h").out))
    assert shown == told
