"""The long form of the disk's faults: every scenario, every kind of fault, at every write-class call on the file.

    python -m faults.disk                      everything; about half an hour on two cores
    python -m faults.disk --every 7 kill enospc
    python -m faults.disk power                power cuts only

Prints a line of figures for each sweep and ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from faults.shim import Fault, NoShim, build, calls
from tests.crash.lives import Lives, server
from tests.crash.matrix import COLOURS, WAYS, Case, Matrix, Verdict

SWEEPS: dict[str, tuple[str, float]] = {
    "kill": ("kill", 0),
    "torn": ("torn", 0),
    "enospc": (str(errno.ENOSPC), 0),
    "eio": (str(errno.EIO), 0),
    "full": (str(errno.ENOSPC), 6),
    "broken": (str(errno.EIO), 6),
    "read-only": (str(errno.EROFS), 3),
    "denied": (str(errno.EACCES), 3),
}
"""Kinds of faults: how the call fails, and for how many seconds the calls after it do too."""

SCENARIOS = ("journey", "refund", "together_async")
PATIENCE = 60.0
"""Seconds after the end of a fault within which a run must have come to its end, also on a busy machine."""


@dataclass(frozen=True)
class Figures:
    """What came of one sweep."""

    verdicts: list[Verdict]
    fired: int
    """In how many cases the fault really took place."""
    refused: int
    """In how many the run could not be started at first: one clear error, nothing recorded."""
    waited: list[float]
    """Seconds from the end of a lasting fault to the end of its run."""

    @property
    def wrong(self) -> list[str]:
        """What is wrong, in words."""
        found = [f"{verdict.case}: {problem}" for verdict in self.verdicts for problem in verdict.problems]
        if self.fired < 0.95 * len(self.verdicts):
            found.append(f"only {self.fired} of {len(self.verdicts)} faults took place")
        return found + [f"a run ended only {late:.1f} s after the fault" for late in self.waited if late > PATIENCE]

    def __str__(self) -> str:
        recovered = sum(not verdict.problems for verdict in self.verdicts)
        repeats = [verdict.repeats for verdict in self.verdicts]
        waited = f", ended at most {max(self.waited):.1f} s after the fault" if self.waited else ""
        return (
            f"{len(self.verdicts)} cases, {self.fired} faults took place, {recovered} right, {sum(repeats)} effects "
            f"repeated (at most {max(repeats, default=0)} a case), {self.refused} starts refused{waited}"
        )


def sweep(
    lives: Lives,
    folder: Path,
    scenario: str,
    kind: str,
    *,
    every: int = 1,
    first: int = 1,
    seconds: float | None = None,
) -> Figures:
    """Have every so many-th call of the scenario go wrong, one per case, and judge what comes of it.

    `seconds` is how long a lasting fault lasts, in place of what is usual for its kind.
    """
    how, usual = SWEEPS[kind]
    seconds = usual if seconds is None else seconds
    cases: list[Case] = [
        (COLOURS[index % 2], WAYS[index // 2 % 2], Fault(number, how, seconds))
        for index, number in enumerate(range(first, count_calls(lives, folder, scenario) + 1, every))
    ]
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{scenario}-{kind}-") as inner:
        verdicts = Matrix(lives, Path(inner), scenario).judge_all(cases).verdicts
        fired = sum(calls(counts)[1] > 0 for counts in Path(inner).glob("*.counts"))
        refused = len(list(Path(inner).glob("*.refused")))
        waited = [float(file.read_text()) for file in Path(inner).glob("*.waited")]
    return Figures(verdicts, fired, refused, waited)


def count_calls(lives: Lives, folder: Path, scenario: str) -> int:
    """Count the write-class calls of a life in which nothing goes wrong; colours and chance change it by a few."""
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        matrix = Matrix(lives, Path(inner), scenario)
        for colour in COLOURS:
            matrix.judge(colour, "attach", Fault(0, "none"))
        return min(calls(counts)[0] for counts in Path(inner).glob("*.counts")) - 5


@contextmanager
def lives_on_failing_disks(folder: Path) -> Iterator[Lives]:
    """Give lives whose disks can be made to fail. Raises `NoShim`."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    context = server()
    os.environ["LD_PRELOAD"] = str(build(folder))
    ensure_running()
    del os.environ["LD_PRELOAD"]
    lives = Lives(context, folder)
    try:
        yield lives
    finally:
        lives.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m faults.disk", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join([*SWEEPS, 'power'])}; default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th call only")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all")
    given = parser.parse_args(arguments)
    kinds = given.kinds or [*SWEEPS, "power"]
    if unknown := set(kinds) - {*SWEEPS, "power"}:
        parser.error(f"there is no fault named {', '.join(sorted(unknown))}")
    os.environ.setdefault("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            with lives_on_failing_disks(Path(folder)) as lives:
                for kind in kinds:
                    for scenario in given.scenario or SCENARIOS:
                        wrong += _one(lives, Path(folder), scenario, kind, given.every)
        except NoShim as reason:
            print(reason)
            return 1
    print("\n".join(wrong) or "nothing is wrong")
    return bool(wrong)


def _one(lives: Lives, folder: Path, scenario: str, kind: str, every: int) -> list[str]:
    from faults import power

    begun = time.monotonic()
    if kind == "power":
        figures: Figures | power.Figures = power.cut(lives, folder, scenario, every=every, recover=10 * every)
    else:
        figures = sweep(lives, folder, scenario, kind, every=every)
    print(f"{kind:10} {scenario:15} {figures} ({time.monotonic() - begun:.0f} s)", flush=True)
    return figures.wrong


if __name__ == "__main__":
    sys.exit(main())
