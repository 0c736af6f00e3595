"""A ledger outside the database: one line for each effect, on disk before the effect counts as begun."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
"""A line: `what` happened, `pid`, `at` (the machine's monotonic clock, one for all processes), and more."""

FOLDER = "NEMESIS_FOLDER"
"""The variable that names the folder of the ledger and of the storm's other files."""


def folder() -> Path:
    """Return the folder of this storm."""
    return Path(os.environ[FOLDER])


def write(what: str, **more: Any) -> None:
    """Append a line in one write, and have it on disk: the order of lines is the order of effects."""
    line = json.dumps({"what": what, "pid": os.getpid(), "at": round(time.monotonic(), 4), **more}) + "\n"
    file = os.open(folder() / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(place: Path) -> list[Entry]:
    """Return the lines of a file; one that a kill has torn was not written."""
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True) if place.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
