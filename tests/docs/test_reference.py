"""The reference says what the code says: names, commands, and the values of the tables of pages."""

from __future__ import annotations

import re
import runpy
from typing import Any, get_args

import pytest

from durable_swarm.cli.commands import COMMANDS
from durable_swarm.events import EventType
from durable_swarm.requests import Kind, Verdict
from durable_swarm.runs import State
from durable_swarm.types import Effect, EndedBy, Repeat
from tests.docs.pages import ROOT, blocks_of, text_of


def test_the_names_are_those_of_the_code() -> None:
    """`docs/reference.md` is what `make reference` writes today."""
    made: Any = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["reference"]
    assert made() == text_of("docs/reference.md"), "docs/reference.md is not of today: make reference"


def test_the_commands_are_those_of_the_program() -> None:
    """`docs/command-line.md` is what `make reference` writes today, and its first part leads to every command."""
    made: Any = runpy.run_path(str(ROOT / "scripts" / "command_line.py"))["page"]
    text = text_of("docs/command-line.md")
    assert made() == text, "docs/command-line.md is not of today: make reference"
    first = text.partition("## All commands")[0]
    assert [name for name in COMMANDS if f"[{name}](#{name})" not in first] == []


@pytest.mark.parametrize(
    ("page", "values"),
    [
        ("events", EventType),
        ("approvals", Kind),
        ("events", Verdict),
        ("runs", State),
        ("runs", EndedBy),
        ("effects", Effect),
        ("effects", Repeat),
    ],
)
def test_tables_have_every_value(page: str, values: Any) -> None:
    """Each value of a closed set of words is on the page about it, as code."""
    code = " ".join(re.findall(r"`[^`\n]+`", text_of(f"docs/{page}.md")))
    missing = [value for value in get_args(values) if not re.search(rf"\b{re.escape(value)}\b", code)]
    assert missing == []


def test_every_program_of_another_library_is_one() -> None:
    """The programs with other libraries, which are not run here, can be compiled."""
    programs = blocks_of("docs/coming-from.md", "py")
    assert len(programs) == 5
    for program in programs:
        compile(program.text, f"docs/coming-from.md:{program.line}", "exec")
