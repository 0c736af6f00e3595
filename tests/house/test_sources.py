"""House rules that are read off the source files."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = ["src", "tests", "docs", "examples", "benchmarks", "scripts", ".ci"]
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".sh", ".html", ".css", ".js", ".sql", ".yml", ".yaml", ".txt"}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MOST_ANY = 654
"""Uses of `Any` in the package: lowered with each one that goes, never raised."""

# Spelled in two parts, so that this file keeps its own rule.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
SILENCED = re.compile(r"#\s*(type:\s*ignore|noqa|pyright:|mypy:|pragma:\s*no cover)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(_parsed(path)):
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


def _all(offenders: Iterator[str]) -> None:
    """Fail with every offender, not with the first."""
    found = list(offenders)
    assert not found, "\n".join(["", *found])


def test_files_and_functions_stay_small() -> None:
    """A file has at most 500 lines and a function at most 60."""

    def offenders() -> Iterator[str]:
        for path in PACKAGE + TESTS:
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MAX_FILE_LINES:
                yield f"{_name(path)} has {lines} lines; split it"
            for function in _functions(path):
                first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
                length = (function.end_lineno or first) - first + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{_name(path)}:{first} {function.name} has {length} lines; split it"

    _all(offenders())


def test_values_have_types() -> None:
    """The package uses `Any` no more often than it did: a value that is only looked at is an `object`."""
    uses = {
        _name(path): sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(_parsed(path)))
        for path in PACKAGE
    }
    found, most = sum(uses.values()), sorted(uses, key=uses.__getitem__, reverse=True)[:5]
    assert found <= MOST_ANY, f"Any is used {found} times, {MOST_ANY} are allowed; most often in {', '.join(most)}"
    assert found > MOST_ANY - 20, f"Any is used {found} times only; lower MOST_ANY"


def test_every_module_says_what_lives_in_it() -> None:
    """Every module of the package has a docstring."""
    _all(f"{_name(path)} has no module docstring" for path in PACKAGE if not ast.get_docstring(_parsed(path)))


def test_no_checker_is_silenced_in_the_package() -> None:
    """The package passes type checker and linter without a single exception in the code."""
    _all(
        f"{_name(path)}:{token.start[0]} silences a checker; mend the code instead"
        for path in PACKAGE
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.COMMENT and SILENCED.search(token.string)
    )


def test_every_test_states_the_rule_it_proves() -> None:
    """Every test function has a docstring: the rule, as one sentence on its first line."""
    _all(
        f"{_name(path)}:{function.lineno} {function.name} does not state its rule as a sentence"
        for path in TESTS
        if path.name.startswith("test_")
        for function in _functions(path)
        if function.name.startswith("test_")
        and not (ast.get_docstring(function) or "").partition("\n")[0].endswith(".")
    )


def test_nothing_is_left_unfinished() -> None:
    """No file carries a mark of unfinished work."""
    _all(
        f"{_name(path)}:{number} has a mark of unfinished work"
        for path in _texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    )


def test_the_rules_have_files_to_look_at() -> None:
    """The rules read the package and the tests, and see functions in them."""
    assert len(PACKAGE) > 50
    assert len(TESTS) > 50
    assert sum(1 for path in PACKAGE for _ in _functions(path)) > 500
    assert len(list(_texts())) > len(PACKAGE) + len(TESTS)
