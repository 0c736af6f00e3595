"""Data that a client keeps during one model call, so that a crash does not lose it."""

from __future__ import annotations

from typing import Any, Protocol


class Memo(Protocol):
    """Data that a client keeps during one model call: plain data. Both methods may block."""

    def read(self) -> Any:
        """Return the value written for this call, also before a crash, or None."""

    def write(self, value: Any) -> None:
        """Replace the value. If the run is durable, the value is stored when this returns."""


class KeptInMemory:
    """A memo that ends with its process."""

    def __init__(self) -> None:
        self._value: object = None

    def read(self) -> object:
        """Return the value."""
        return self._value

    def write(self, value: object) -> None:
        """Keep a value."""
        self._value = value
