"""What a process takes while nothing happens."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


def idle(seconds: float) -> tuple[float, float]:
    """Return the part of a core that this process takes, in percent, and its statements a second."""
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    event.listen(Engine, "before_cursor_execute", count)
    before, began = time.process_time(), time.monotonic()
    time.sleep(seconds)
    taken, elapsed = time.process_time() - before, time.monotonic() - began
    event.remove(Engine, "before_cursor_execute", count)
    return 100 * taken / elapsed, statements / elapsed
