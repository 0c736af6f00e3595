"""The reference says what the code says: names with their signatures and docstrings, and the values of its tables."""

from __future__ import annotations

import re
import runpy
from typing import Any, get_args

import pytest

from durable_swarm.events import EventType
from durable_swarm.requests import Kind, Verdict
from durable_swarm.runs import State
from durable_swarm.types import Effect, EndedBy, Repeat
from tests.docs.pages import ROOT, blocks_of, text_of


def test_the_names_are_those_of_the_code() -> None:
    """`docs/reference.md` is what `make reference` writes today."""
    made: Any = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["reference"]
    assert made() == text_of("docs/reference.md"), "docs/reference.md is not of today: make reference"


@pytest.mark.parametrize("values", [EventType, Kind, Verdict, State, Effect, EndedBy, Repeat])
def test_tables_have_every_value(values: Any) -> None:
    """Each value of a closed set of words is in the reference, as code."""
    code = " ".join(re.findall(r"`[^`\n]+`", text_of("docs/api.md")))
    missing = [value for value in get_args(values) if not re.search(rf"\b{re.escape(value)}\b", code)]
    assert missing == []


def test_every_program_of_another_library_is_one() -> None:
    """The programs with other libraries, which are not run here, can be compiled."""
    programs = blocks_of("docs/coming-from.md", "py")
    assert len(programs) == 5
    for program in programs:
        compile(program.text, f"docs/coming-from.md:{program.line}", "exec")
