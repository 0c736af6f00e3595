"""Power cuts: what a file holds when the power fails at any moment, and whether that is enough.

The shim tapes every write, sync, truncation and deletion of a life, and the life's own notes of what the database had
acknowledged by then. After each of them the power is cut: what was written since the last sync of its file is lost, or
some of it reaches the disk in any order, or half of a write does. Each such disk is opened by SQLite.

Not modelled: disks that lie about a sync, damage to sectors that were not being written, and folders (that a file
exists, was cut or deleted is taken for durable at once; only a journal may be missing until its folder was synced).
"""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durable_swarm.testing.crash.boundaries import PROBE
from faults.shim import Armed, Fault
from tests.crash import scenarios
from tests.crash.disk import damages, file_of
from tests.crash.lives import Lives
from tests.crash.matrix import recorded

SUFFIXES = {"m": "", "w": "-wal", "j": "-journal"}
HEAD = struct.Struct("=ccqq")
LOSSES = ("all", "some", "journal")
"""What a cut takes with it: all that was not synced; some of it; and a journal whose folder was not synced."""


@dataclass(frozen=True)
class Event:
    """One call on a file: write, sync, truncation, deletion (`W`, `S`, `T`, `U`); `file` is a key of `SUFFIXES`."""

    what: str
    file: str
    offset: int
    data: bytes


def read_tape(path: Path) -> list[Event]:
    """Give the calls that a shim has taped, and the notes among them (file `n`)."""
    tape, events, place = path.read_bytes(), [], 0
    while place < len(tape):
        what, file, offset, size = HEAD.unpack_from(tape, place)
        place += HEAD.size
        written = size if what == b"W" else 0
        events.append(Event(what.decode(), file.decode(), offset, tape[place : place + written]))
        place += written
    return events


@dataclass
class File:
    """A file: what is on the disk, and what was done to it since its last sync."""

    durable: bytearray | None = None
    waiting: list[Event] = field(default_factory=list)
    entered: bool = True
    """Whether its folder was synced since it was made."""

    def do(self, event: Event) -> None:
        if event.what == "U":
            self.durable, self.waiting = None, []
            return
        if self.durable is None:
            self.durable, self.entered = bytearray(), False
        if event.what == "S":
            for earlier in self.waiting:
                apply(self.durable, earlier)
            self.waiting = []
        elif event.what == "T":
            for earlier in self.waiting:
                apply(self.durable, earlier)
            self.waiting = []
            apply(self.durable, event)
        else:
            self.waiting.append(event)

    def after_cut(self, chance: random.Random | None) -> bytes:
        """Give what the disk holds after a cut; with `chance`, some of what was not synced has reached it."""
        assert self.durable is not None
        content = bytearray(self.durable)
        for event in self.waiting if chance else []:
            fate = chance.random() if chance else 0
            if fate < 0.6:
                part = event.data if fate < 0.5 else event.data[: len(event.data) // 2]
                apply(content, Event("W", event.file, event.offset, part))
        return bytes(content)


def apply(content: bytearray, event: Event) -> None:
    """Do what the event says."""
    if event.what == "T":
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    content.extend(bytes(max(0, event.offset + len(event.data) - len(content))))
    content[event.offset : event.offset + len(event.data)] = event.data


def taped_life(tape: str, name: str, url: str, run_id: str) -> scenarios.Answer:
    """One life of a scenario whose calls are taped, with a note after each commit of what is recorded."""
    Armed(file_of(url), Fault(0, "none"), tape=Path(tape))
    notes = os.open(f"{file_of(url)}-note", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    leave = PROBE.after

    def after(number: int) -> None:
        os.write(notes, json.dumps(sorted(recorded(url))).encode())
        leave(number)

    vars(PROBE)["after"] = after
    return scenarios.live(name, url, run_id, "sync", "attach")


@dataclass
class Figures:
    """What came of the cuts."""

    calls: int
    disks: int = 0
    acknowledged: int = 0
    """Checkpoints that were acknowledged at a cut, over all cuts."""
    lost: int = 0
    recovered: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.disks} disks after a cut, {len(self.wrong)} wrong, {self.lost} of "
            f"{self.acknowledged} acknowledged checkpoints lost, {self.recovered} runs recovered from such disks"
        )


def cut(
    lives: Lives,
    folder: Path,
    scenario: str,
    *,
    every: int = 1,
    recover: int = 0,
    unsynced: Collection[tuple[str, str]] = (),
) -> Figures:
    """Cut the power after every so many-th call of a life of the scenario; recover the run on some of the disks.

    `unsynced` are kinds of calls (such as `("S", "w")`) that never took place: what a careless program would do.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="power-") as inner:
        place = Path(inner)
        url, tape, run_id = f"sqlite:///{place}/runs.sqlite", place / "tape", "run-power"
        answer = lives.live(taped_life, str(tape), scenario, url, run_id, ledger=place / "ledger").value
        figures = Figures(0)
        events = [event for event in read_tape(tape) if (event.what, event.file) not in unsynced]
        for number, disk, acknowledged, label in disks(events, place, every):
            figures.calls = number
            _judge(figures, disk, acknowledged, label)
            if recover and number % recover == 0:
                ended = lives.live(
                    scenarios.live,
                    scenario,
                    f"sqlite:///{disk}",
                    run_id,
                    "sync",
                    "attach",
                    ledger=disk.with_name("led"),
                )
                figures.recovered += ended.value == answer
                if ended.value != answer:
                    figures.wrong.append(f"{label}: the run ended otherwise: {ended.value}")
    return figures


def _judge(figures: Figures, disk: Path, acknowledged: Any, label: str) -> None:
    figures.disks += 1
    figures.acknowledged += len(acknowledged)
    figures.wrong += [f"{label}: {damage}" for damage in damages(disk)]
    if not figures.wrong and (lost := acknowledged - recorded(f"sqlite:///{disk}")):
        figures.lost += len(lost)
        figures.wrong.append(f"{label}: lost {sorted(lost)}")


def disks(events: list[Event], folder: Path, every: int) -> Iterator[tuple[int, Path, set[Any], str]]:
    """Give the disks after cuts: the number of the call, the database's path, what was acknowledged, and a label."""
    files = {file: File() for file in SUFFIXES}
    acknowledged: set[Any] = set()
    number = 0
    for event in events:
        if event.file == "n":
            acknowledged |= {tuple(entry) for entry in json.loads(event.data)}
            continue
        if event.file == "f":
            for known in files.values():
                known.entered = True
            continue
        files[event.file].do(event)
        number += 1
        if number % every == 0:
            for loss in LOSSES:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    label = f"power cut after call {number} ({event.what} {event.file}), {loss} lost"
                    yield number, _lay(files, Path(place) / "runs.sqlite", loss, number), acknowledged, label


def _lay(files: dict[str, File], path: Path, loss: str, seed: int) -> Path:
    for key, file in files.items():
        if file.durable is not None and (file.entered or loss != "journal" or key == "m"):
            chance = random.Random(seed) if loss == "some" else None
            path.with_name(path.name + SUFFIXES[key]).write_bytes(file.after_cut(chance))
    return path
