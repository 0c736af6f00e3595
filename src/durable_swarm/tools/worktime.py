"""The time that a run works: the time in which at least one of its calls is in progress and does not wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class WorkTime:
    """A clock that stops while a run waits for people, times and providers. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._since = 0.0
        self._total = 0.0

    @property
    def seconds(self) -> float:
        """The seconds worked so far."""
        with self._lock:
            return self._total + (time.monotonic() - self._since if self._working > 0 else 0.0)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the time of this block."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do not count the time of this block, which is inside of one that counts."""
        self._add(-1)
        try:
            yield
        finally:
            self._add(1)

    def _add(self, workers: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._working > 0:
                self._total += now - self._since
            self._working, self._since = self._working + workers, now
