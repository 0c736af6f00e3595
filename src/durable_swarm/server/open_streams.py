"""How many streams are open at once, at all doors and the console together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

MOST_STREAMS = 2000
"""How many streams may be open at once, unless it is given."""


class OpenStreams:
    """Counts the open streams of a server, which each keep a connection."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self.most = most
        self._open = 0

    @property
    def full(self) -> bool:
        """Return True if no further stream may be opened."""
        return self._open >= self.most

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count an open stream."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
