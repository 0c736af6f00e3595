"""The words that texts of this project do without, each with what to say in its place, and how texts are found."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    r"in hand": "in progress",
    r"under way": "in progress",
    r"(?:go|goes|went|going) on": "continue",
    r"mend(?:s|ed|ing)?": "fix",
    r"(?<!is )(?<!are )(?<!was )(?<!were )(?<!be )told": "say, send, report or log",
    r"told from": "made from",
    r"lies": "is, is stored",
    r"(?:stands|stood)(?! for| still)": "is, is recorded, depends on",
    r"so many": "this many, or the number",
    r"(?<!there )(?:is|are|was|were) no (?!longer|more)": "is not a",
    r"narrator|strays?": "the field's own word",
}
"""Regular expressions of whole words, and what to write instead."""

BANNED = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def misused(text: str) -> Iterator[tuple[int, str]]:
    """Return the line (from 0) and the words of each place where a text uses one of them."""
    prose = CODE.sub(lambda match: re.sub(r"\S", " ", match[0]), text)
    for match in BANNED.finditer(prose):
        yield prose.count("\n", 0, match.start()), match[0]


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Return the texts of a file with their first lines: a page as a whole, the docstrings and messages of a module."""
    whole = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, whole
        return
    for node in ast.walk(ast.parse(whole)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def first_words(path: Path) -> Iterator[tuple[int, str]]:
    """Return the line and the first word of every docstring of a function or a class."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(node):
            yield node.lineno, str(ast.get_docstring(node)).split()[0]
