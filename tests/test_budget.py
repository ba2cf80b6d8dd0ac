"""The size of letsacme.py, and that README.md tells the truth about it and about its options."""
import ast
import io
import re
import tokenize

import pytest
import support

pytestmark = pytest.mark.quick

SOURCE = support.SCRIPT.read_text(encoding="utf-8")
README = support.TOP / "README.md"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER)


def documented():
    """All that may have a docstring: the module, its classes and functions."""
    return [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, FUNCTIONS)]


def code_lines():
    """The numbers of the lines that are not blank, nor only a comment, nor in a docstring."""
    docstrings = set()
    for node in documented():
        if ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    # Blank lines within a text of several lines count for nothing either.
    blank = {number for number, line in enumerate(SOURCE.split("\n"), 1) if not line.strip()}
    return lines - docstrings - blank


def test_size():
    """The script can be read in one sitting."""
    lines = SOURCE.splitlines()
    assert len(code_lines()) <= 715
    assert len(lines) <= 958
    assert max(map(len, lines)) <= 100


def test_docstrings():
    """Whatever can have a docstring has one, but for methods that Python itself has named."""
    bare = [getattr(node, "name", "module") for node in documented() if not ast.get_docstring(node)]
    assert not [name for name in bare if not name.startswith("__")]


def test_parameters():
    """No function has more than four parameters, self aside."""
    for node in documented():
        if isinstance(node, ast.FunctionDef):
            names = [each.arg for each in node.args.args + node.args.kwonlyargs]
            assert len(set(names) - {"self"}) <= 4, node.name


def test_size_in_readme():
    """README.md gives the true size."""
    told = re.findall(r"(\d+)\s+lines\s+of\s+code", README.read_text(encoding="utf-8"))
    assert told and set(told) == {str(len(code_lines()))}


def options_in(text):
    """All that looks like an option, short or long."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))


def test_options_in_readme(letsacme):
    """The options in README.md's table (its first column is headed "Option") are those of -h."""
    text = README.read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| *Option *\|.*\n((?:\|.*\n)+)", text, re.M)
    first_column = "\n".join(row.split("|")[1] for row in table.splitlines())
    assert options_in(first_column) == options_in(letsacme("-h").out)
