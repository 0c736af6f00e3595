"""Run ids for a program that names none, so that the restarted program continues where it was interrupted.

`durable-swarm run` calls `begin`. From then on a run without `run_id` has the id `<program>-<session>-<digest>`, and
the same call in the restarted program finds the same run. The digest covers everything that the call asks (agent,
messages, context variables, settings), but not its place in the program. So neither threads, nor an edit of the
program, nor another answer of its user can give a call the run of another call. A repeated identical call gets `-2`.

A session is one start of a program, with the starts that continue it; it is stored in the database, in a row of the
program. It is over when the program has ended. If it ended with an error, the next start continues it once the failed
run was resumed. A session in which a living process works is never shared.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy

from durable_swarm import codec
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.processes import here
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import base
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import PROGRAM, Store
from durable_swarm.errors import ConfigurationError

REMEMBERED = 20
"""The number of failed runs that a session remembers: the newest."""


class ScriptRun:
    """A running program, identified by its place (the path of its script, say) and its arguments.

    `continues` is called when a start turns out to continue an earlier one.
    """

    def __init__(self, name: str, place: str, arguments: Sequence[str], continues: Callable[[], None]) -> None:
        self._name = re.sub(r"[^\w.-]+", "-", name)[:40]
        self.name = f"{self._name}-{_digest(place)}"
        """The name of its swarms, so that other programs with agents of the same names do not take its runs over."""
        self._key = f"{PROGRAM}/{_digest([place, *arguments])}"
        self._continues = continues
        self._sessions: dict[sqlalchemy.URL, str] = {}
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run_id(self, opened: Process, record: base.Record) -> str:
        """Return the id of the run that a call asks for."""
        asked = {key: value for key, value in record.items() if key not in ("v", "at", "debug", "limits")}
        with self._lock:
            if opened.url not in self._sessions:
                self._sessions[opened.url] = self._claim(opened)
            run_id = f"{self._prefix(self._sessions[opened.url])}{_digest(asked)}"
            self._asked[run_id] += 1
            again = self._asked[run_id]
        return run_id if again == 1 else f"{run_id}-{again}"

    def _prefix(self, session: str) -> str:
        return f"{self._name}-{session}-"

    def _claim(self, opened: Process) -> str:
        """Return the session of an interrupted start, else a new one; this process owns it from now on."""
        me, store = opened.identity, opened.store
        with me.alone():
            known = store.notes(self._key)
            # Of this process's name, but not begun by it: an earlier process with the same `worker_id`.
            dead = {
                key: about for key, about in known.items() if me.name == about["worker"] or me.is_dead(about["worker"])
            }
            left = [key for key, about in dead.items() if _goes_on(store, about)]
            session = left[0] if left else secrets.token_hex(5)
            others = {key: about for key, about in known.items() if "failed" not in about}
            store.note(self._key, {**others, session: {"worker": me.name}})
        if left:
            self._continues()
        return session

    def end(self, *, failed: bool) -> str | None:
        """Note that the program has ended. If it failed, return the id of the newest failed run, or None."""
        from durable_swarm.engine.api.inspector import inspect_database

        newest = None
        for url, session in self._sessions.items():
            with inspect_database(url) as visitor, visitor.alone():
                known = visitor.store.notes(self._key)
                about = known.pop(session, {})
                ids = self._failed(visitor.store, session) if failed else []
                if ids:
                    known[session] = {**about, "failed": ids}
                    newest = ids[0]
                visitor.store.note(self._key, known)
        return newest

    def _failed(self, store: Store, session: str) -> list[str]:
        rows = store.rows(states=["failed", "cancelled"], prefix=self._prefix(session), limit=REMEMBERED)
        return [row.workflow_id for row in rows]


def _goes_on(store: Store, about: dict[str, Any]) -> bool:
    if "failed" not in about:
        return True
    rows = [store.row(run_id, load_output=False) for run_id in about["failed"]]
    return any(row is not None and state_of(row) not in ("failed", "cancelled") for row in rows)


def _digest(data: object) -> str:
    return hashlib.sha256(codec.dumps(data).encode()).hexdigest()[:12]


_program: ScriptRun | None = None


def begin(program: ScriptRun | None) -> None:
    """Use the ids of `program` for unnamed runs of this process; None ends that."""
    global _program
    _program = program


def default_name() -> str:
    """Return the name of a swarm without one: under `durable-swarm run`, each program has a name of its own."""
    return "" if _program is None else _program.name


def default_id(open_process: Callable[[], Process], record: base.Record) -> str | None:
    """Return the id of a run that its caller did not name, or None if no program has begun."""
    return None if _program is None else _program.run_id(open_process(), record)


def taken_over() -> list[Run]:
    """Return the runs of earlier starts that this process has taken over, including those that have ended meanwhile."""
    try:
        process = here.current()
    except ConfigurationError:
        return []
    return [Run(run_id, lambda: process.store, lambda: process) for run_id in sorted(process.recovery.taken)]
