"""The shim that has write-class calls on a SQLite file go wrong: building it, and arming it in a process."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faultio.c")


class NoShim(Exception):
    """The shim cannot be built here; the text says why."""


def build(folder: Path) -> Path:
    """Compile the shim into the folder and give its path, for LD_PRELOAD. Raises `NoShim`."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not sys.platform.startswith("linux") or compiler is None:
        raise NoShim("faults of the disk need Linux and a C compiler: install one (apt-get install gcc)")
    made = folder / "faultio.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoShim(f"the C compiler failed: {done.stderr[-500:]}")
    return made


@dataclass(frozen=True)
class Fault:
    """What goes wrong: the `number`-th write-class call on the file, from 1, and maybe those after it.

    `how` is `kill` (SIGKILL before the call), `torn` (half of the write, then SIGKILL), or an errno with which the
    call fails. `seconds` is how long calls fail after the first one; 0 means that one alone fails.
    """

    number: int
    how: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        how = os.strerror(int(self.how)) if self.how.isdigit() else self.how
        return f"{how} at write call {self.number}{lasting}"


class Armed:
    """A fault in this process: how many calls there were, how many went wrong, and when it was mended."""

    def __init__(self, database: Path, fault: Fault, *, tape: Path | None = None) -> None:
        self._counts = database.with_name(database.name + ".counts")
        self._lasting = database.with_name(database.name + ".broken")
        self._counts.write_bytes(bytes(16))
        self.mended_at: float | None = None
        os.environ.update(
            FAULTIO_FILE=str(database),
            FAULTIO_AT=str(fault.number),
            FAULTIO_HOW=fault.how,
            FAULTIO_WHILE=str(self._lasting) if fault.seconds else "",
            FAULTIO_COUNTS=str(self._counts),
            FAULTIO_TAPE=str(tape or ""),
        )
        if fault.seconds:
            self._lasting.touch()
            threading.Thread(target=self._mend, args=(fault.seconds,), daemon=True).start()
        ctypes.CDLL(None).faultio_begin()

    def _mend(self, seconds: float) -> None:
        while not self.went_wrong:
            time.sleep(0.01)
        time.sleep(seconds)
        self._lasting.unlink()
        self.mended_at = time.monotonic()

    @property
    def calls(self) -> int:
        """How many write-class calls there were so far."""
        return calls(self._counts)[0]

    @property
    def went_wrong(self) -> int:
        """How many of them failed."""
        return calls(self._counts)[1]


def calls(counts: Path) -> tuple[int, int]:
    """Give how many calls there were, and how many went wrong, as a shim counted them in the file."""
    seen, wrong = struct.unpack("qq", counts.read_bytes())
    return seen, wrong
