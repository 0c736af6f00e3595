"""How the tools under attack note what they do, and what they have in common."""

from __future__ import annotations

import secrets
from typing import Any

from durable_swarm import current_call
from faults.storms import ledger

PACE = 0.03
"""Seconds that an effect takes."""
NAP = 0.6
CHOICES = ["red", "green", "blue"]
NOT_YET = "not yet"
"""The one error that a tool of this program raises."""


def begin(part: str = "", **more: Any) -> tuple[str, str, str]:
    """Note that a call, or a part of it, is entered; return what `end` needs."""
    made, mark = current_call(), secrets.token_hex(4)
    ledger.write("enter", run=made.run_id, call=made.call_id, part=part, tool=made.tool, mark=mark, **more)
    return made.run_id, made.call_id, mark


def end(begun: tuple[str, str, str], part: str = "") -> str:
    """Note that it is left, and return a text that no other execution has."""
    run, call, mark = begun
    ledger.write("leave", run=run, call=call, part=part, mark=mark)
    return mark


def child_id() -> str:
    """Return the id of the run that the tool call at hand starts."""
    made = current_call()
    return f"sub-{made.run_id}-{made.call_id}"


def has_failed(begun: tuple[str, str, str]) -> bool:
    """Return True if the call has failed before."""
    entries = ledger.read(ledger.folder() / "ledger")
    return any(entry["what"] == "raise" and [entry["run"], entry["call"]] == [*begun[:2]] for entry in entries)


def fail_once(begun: tuple[str, str, str]) -> None:
    """Raise at the first execution of a call that is told of."""
    if not has_failed(begun):
        ledger.write("raise", run=begun[0], call=begun[1], mark=begun[2])
        raise RuntimeError(NOT_YET)
