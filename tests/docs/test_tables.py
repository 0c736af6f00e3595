"""What a page says about the tables of a database is what the sources make."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, text_of

MADE = re.compile(r'\bTable\(\s*"(durable_swarm_\w+)"')


def test_every_table_is_on_the_page() -> None:
    """The list of tables on the page about code changes has each table of ours, and no other."""
    modules = (ROOT / "src" / "durable_swarm" / "engine").rglob("*.py")
    made = {name for path in modules for name in MADE.findall(path.read_text(encoding="utf-8"))}
    rows = re.findall(r"^\| (`durable_swarm_\w+`.*?) \|", text_of("docs/code-changes.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == made
