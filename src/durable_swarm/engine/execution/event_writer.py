"""Writes the rows of a run's events in batches while the run executes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from durable_swarm.engine.storage.events import NewRow

log = logging.getLogger("durable_swarm")

INTERVAL, SIZE, PATIENCE = 0.05, 4096, 1.0
"""Seconds between writes, characters that trigger an earlier write, seconds until a failed write is tried again."""


class Source(Protocol):
    """A source that has rows to write from time to time."""

    def rows(self) -> list[NewRow]:
        """Return the rows to write now."""

    def written(self, refused: bool | None) -> None:
        """Receive the result: False if stored, True if refused (run owned elsewhere), None if not possible."""


class Writer:
    """Writes the rows of all runs of a process together, at most every `INTERVAL` seconds unless there are many."""

    def __init__(self, write: Callable[[list[NewRow]], set[str]]) -> None:
        self._write = write
        self._waiting: dict[Source, None] = {}
        self._changed = threading.Condition()
        self._due = 0.0
        self._last = 0.0
        self._thread: threading.Thread | None = None
        self._flushing = threading.Lock()
        self._closed = False

    def schedule(self, source: Source, *, soon: bool = False, much: bool = False) -> None:
        """Schedule a write of the source's rows: an interval from now, one after the last (`soon`), or at once."""
        with self._changed:
            if self._closed:
                return
            now = time.monotonic()
            due = now if much else max(now, self._last + INTERVAL) if soon else now + INTERVAL
            self._due = min(self._due, due) if self._waiting else due
            self._waiting[source] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="durable-swarm-events", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Stop writing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(INTERVAL + PATIENCE)

    def _run(self) -> None:
        while sources := self._next():
            self.flush(sources)

    def _next(self) -> list[Source]:
        with self._changed:
            while not self._closed and (not self._waiting or self._due > time.monotonic()):
                self._changed.wait(max(self._due - time.monotonic(), 0.001) if self._waiting else None)
            if self._closed:
                return []
            sources = list(self._waiting)
            self._waiting.clear()
            self._last = time.monotonic()
            return sources

    def flush(self, sources: list[Source]) -> None:
        """Write the rows of these sources, in this thread."""
        with self._flushing:
            self._flush(sources)

    def _flush(self, sources: list[Source]) -> None:
        given = {source: self._rows(source) for source in sources}
        rows = {source: some for source, some in given.items() if some is not None}
        new = [row for some in rows.values() for row in some]
        try:
            lost = self._write(new) if new else set()
        except Exception as error:
            # No failure to write events may stop a run: events that are not written here are derived from its records.
            log.debug("events could not be written: %s", type(error).__name__)
            for source, some in rows.items():
                self._tell(source, None)
                if some:
                    self._again(source)
            return
        for source, some in rows.items():
            self._tell(source, any(row.run_id in lost for row in some))

    def _tell(self, source: Source, refused: bool | None) -> None:
        try:
            source.written(refused)
        except Exception as error:
            log.warning("events are not sent live any more: %s: %s", type(error).__name__, error)

    def _rows(self, source: Source) -> list[NewRow] | None:
        try:
            return source.rows()
        except Exception as error:  # The program's codec failed; it may succeed the next time.
            log.debug("events could not be encoded: %s", type(error).__name__)
            self._tell(source, None)
            self._again(source)
            return None

    def _again(self, source: Source) -> None:
        with self._changed:
            if not self._closed:
                self._waiting[source] = None
                self._due = time.monotonic() + PATIENCE
                self._changed.notify()
