"""The durable boundaries of a life: every commit that changed a run, and every effect on the outside world.

`watch` makes each of them a place where this process can kill itself with SIGKILL: before it or after it. The process
that is killed has no time for anything: no `finally`, no `atexit`, no buffer that is still written.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dbos import DBOS
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect

from durable_swarm import current_call
from durable_swarm.errors import NotInRun
from durable_swarm.models import current_model_call

Side = Literal["before", "after"]

RUN_PREFIX = "run-"
"""How the ids of runs under test begin: it tells writes to their rows from the engine's housekeeping."""

_WRITES = re.compile(
    r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+(?:\"?\w+\"?\.)?\"?"
    r"(workflow_status|workflow_input|workflow_output|operation_outputs)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """Where to kill a life: at its `number`-th boundary, counted from 1, before or after it."""

    number: int
    side: Side


class Probe:
    """Numbers the boundaries of this process as they are reached, and kills it at one of them."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._at: Place | None = None
        self._lock = threading.Lock()

    def arm(self, at: Place | None) -> None:
        """Kill this process at `at`; with None count only."""
        self._at = at

    def before(self, label: str) -> int:
        """Reach a boundary and give its number."""
        with self._lock:
            self.passed.append(label)
            number = len(self.passed)
        self._die_if(number, "before")
        return number

    def after(self, number: int) -> None:
        """Leave the boundary of that number."""
        self._die_if(number, "after")

    def _die_if(self, number: int, side: Side) -> None:
        if self._at == Place(number, side):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


PROBE = Probe()


def watch() -> None:
    """Make every commit of this process that changes a run a boundary. To be called once, before the database opens."""
    commit: Callable[[DefaultDialect, Any], None] = DefaultDialect.do_commit

    def watched(dialect: DefaultDialect, connection: Any) -> None:
        tables = connection.info.pop("changed", None)
        if tables is None:
            commit(dialect, connection)
            return
        number = PROBE.before(f"commit {' '.join(dict.fromkeys(tables))}")
        commit(dialect, connection)
        PROBE.after(number)

    patched: Any = DefaultDialect
    patched.do_commit = watched
    event.listen(Engine, "after_cursor_execute", _note_changes)
    event.listen(Engine, "rollback", lambda connection: connection.info.pop("changed", None))


def _note_changes(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
    written = _WRITES.findall(statement)
    # A statement with RETURNING reports its number of rows only once they were fetched.
    changed = cursor.rowcount != 0 or "RETURNING" in statement
    if written and changed and f"'{RUN_PREFIX}" in repr(parameters):
        connection.info.setdefault("changed", []).extend(written)


class Ledger:
    """The world outside the database: a file that effects are appended to, one line each, in one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        """Append one line of words."""
        os.write(self._file, (" ".join(str(word) for word in words) + "\n").encode())


_ledger: Ledger | None = None


def keep_ledger(path: str) -> None:
    """Write the effects of this process to that file."""
    global _ledger
    _ledger = Ledger(path)


def effect(label: str) -> None:
    """Have an effect on the outside world: a boundary, and a line in the ledger.

    The line says what the effect is (idempotency key and label), whether it is known to be a repetition (attempt), and
    which checkpoint would keep it from happening again (workflow and step of the engine).
    """
    if _ledger is None:
        raise RuntimeError("effects are for lives: this process keeps no ledger")
    key, attempt = _who()
    number = PROBE.before(f"effect {label}")
    _ledger.write(key, label, attempt, DBOS.workflow_id, DBOS.step_id)
    PROBE.after(number)


def _who() -> tuple[str, int]:
    asked = current_model_call.get()
    if asked is not None:
        return f"{asked.run_id}/{asked.turn}", 0
    try:
        call = current_call()
    except NotInRun:
        return "outside", 0
    return call.idempotency_key, call.attempt
