"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w*)(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """A fenced block of a page; `title` is the name of the file that it shows, if it shows one."""

    kind: str
    title: str | None
    text: str
    line: int


def pages() -> list[str]:
    """Return the path of every page, from the root of the project."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def text_of(page: str) -> str:
    """Return a page as it is written."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, kind: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page in order, all or those of one kind."""
    text = text_of(page)
    found = []
    for match in FENCE.finditer(text):
        indent, language, more, body = match.groups()
        title = TITLE.search(more)
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, title[1] if title else None, "".join(lines), line))
    return [block for block in found if kind in (None, block.kind)]


def examples_of(page: str) -> list[str]:
    """Return the Python examples of a page that show no file, in order."""
    return [block.text for block in blocks_of(page, "python") if block.title is None]
