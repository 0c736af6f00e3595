"""The ledger: the effects of a program under a crash test on the world outside its database."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from durable_swarm.errors import ConfigurationError, NotInRun
from durable_swarm.testing.crash.boundaries import PROBE
from durable_swarm.tools.context import current_call


@dataclass(frozen=True)
class Entry:
    """One line of a ledger: the effect, its key if it had one, the tool it came from and that call's attempt."""

    name: str
    key: str | None
    tool: str | None
    attempt: int


_ledger: int | None = None


def keep_ledger(path: Path) -> None:
    """Write the effects of this process to that file."""
    global _ledger
    _ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(name: str, key: str | None = None) -> None:
    """Report an effect on the outside world to a crash test: a payment, a mail, a row elsewhere.

    Call it where the effect happens, in a tool or in the fake of the service that the tool uses. With `key` the effect
    counts once for each key, as with a service that takes an idempotency key; the natural key is
    `current_call().idempotency_key`. Outside a crash test it has no effect.

    Raises `ConfigurationError` for a name or key that is not a text.
    """
    if not isinstance(name, str) or not isinstance(key, str | None):
        raise ConfigurationError(f"effect({name!r}, key={key!r}): the name and the key are text")
    if _ledger is not None:
        report(name, asdict(_entry(name, key)))


def report(name: str, line: Mapping[str, object]) -> None:
    """Record an effect: a boundary, and a line in this process's ledger. Raises `RuntimeError` without a ledger."""
    if _ledger is None:
        raise RuntimeError("effects are for lives: this process keeps no ledger")
    number = PROBE.before(f"effect {name}")
    # One write, so that lines of parallel calls are never interleaved.
    os.write(_ledger, (json.dumps(line) + "\n").encode())
    PROBE.after(number)


def _entry(name: str, key: str | None) -> Entry:
    try:
        call = current_call()
    except NotInRun:
        return Entry(name, key, None, 1)
    return Entry(name, key, call.tool, call.attempt)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ledger so far, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_ledger(path: Path) -> list[Entry]:
    """Return the effects so far, in order."""
    return [Entry(**line) for line in read_lines(path)]
