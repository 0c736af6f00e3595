"""What a client keeps of one model call that is in progress, so that a crash does not lose it."""

from __future__ import annotations

from typing import Any, Protocol


class Memo(Protocol):
    """What a client keeps of one model call that is in progress: plain data. Both methods may block."""

    def read(self) -> Any:
        """Return what was written for this call, before a crash too, or None."""

    def write(self, value: Any) -> None:
        """Keep a value in place of the last one. It is durable, where the run is, when this returns."""


class KeptInMemory:
    """A memo that is gone with its process."""

    def __init__(self) -> None:
        self._value: Any = None

    def read(self) -> Any:
        """Return what was written."""
        return self._value

    def write(self, value: Any) -> None:
        """Keep a value."""
        self._value = value
