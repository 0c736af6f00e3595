"""House rules that are read off the source files."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = ["src", "tests", "docs", "examples", "benchmarks", "scripts", ".ci"]
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".sh", ".html", ".css", ".js", ".sql", ".yml", ".yaml", ".txt"}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Spelled in two parts, so that this file keeps its own rule.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
SILENCED = re.compile(r"#\s*(type:\s*ignore|noqa|pyright:|mypy:|pragma:\s*no cover)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _texts() -> Iterator[Path]:
    """Every file of the project that people write and read."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT_SUFFIXES)
    for folder in FOLDERS:
        yield from (
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
        )


@pytest.mark.parametrize("path", PACKAGE + TESTS, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file has at most 500 lines and a function at most 60."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{_name(path)} has {lines} lines; split it"
    for function in _functions(path):
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        length = (function.end_lineno or first) - first + 1
        assert length <= MAX_FUNCTION_LINES, f"{_name(path)}:{first} {function.name} has {length} lines; split it"


@pytest.mark.parametrize("path", PACKAGE, ids=_name)
def test_every_module_says_what_lives_in_it(path: Path) -> None:
    """Every module of the package has a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{_name(path)} has no module docstring"


@pytest.mark.parametrize("path", PACKAGE, ids=_name)
def test_no_checker_is_silenced_in_the_package(path: Path) -> None:
    """The package passes type checker and linter without a single exception in the code."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    silenced = [token.start[0] for token in tokens if token.type == tokenize.COMMENT and SILENCED.search(token.string)]
    assert not silenced, f"{_name(path)} silences a checker in lines {silenced}; mend the code instead"


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=_name)
def test_every_test_states_the_rule_it_proves(path: Path) -> None:
    """Every test function has a docstring: the rule, as one sentence on its first line."""
    for function in _functions(path):
        if function.name.startswith("test_"):
            docstring = ast.get_docstring(function) or ""
            assert docstring.partition("\n")[0].endswith("."), (
                f"{_name(path)}:{function.lineno} {function.name} does not state its rule as a sentence"
            )


@pytest.mark.parametrize("path", list(_texts()), ids=_name)
def test_nothing_is_left_unfinished(path: Path) -> None:
    """No file carries a mark of unfinished work."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if UNFINISHED.search(line)]
    assert not found, f"{_name(path)} has marks of unfinished work in lines {found}"
