"""The long form of random kills: mixed scenarios, killed at any instant, up to three times each, until so many died.

    python -m faults.kills                500 kills, about five minutes on two cores
    python -m faults.kills 60 --seed 7

Prints the counts and ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from tests.crash import scenarios
from tests.crash.lives import Lives, server
from tests.crash.matrix import COLOURS, WAYS, Case, Matrix, Report

KINDS = {
    "finished steps repeated": ("recorded, and executed again",),
    "effects lost": ("lost effects",),
    "histories a provider refuses": ("ProviderError", "tool_call", "400"),
    "runs lost": ("has not ended", "did not know it", "hang"),
}
"""What may be wrong, by the words of a verdict; the rest counts as `other`."""


def instants(chance: random.Random) -> list[float]:
    """Give when to kill up to three lives of one run: a life ends within 0.1 to 0.4 s of its start."""
    return [chance.uniform(0.02, 0.3) for _ in range(chance.randint(1, 3))]


def kill(matrices: list[Matrix], wanted: int, chance: random.Random) -> Report:
    """Judge cases of all scenarios in turn until so many lives were killed."""
    report = Report([])
    while report.kills < wanted:
        for matrix in matrices:
            cases: list[Case] = [
                (colour, chance.choice(WAYS), *instants(chance)) for colour in COLOURS for _ in range(2)
            ]
            report.verdicts.extend(matrix.judge_all(cases).verdicts)
    return report


def wrongs(report: Report) -> Counter[str]:
    """Count what is wrong, by kind."""
    found = Counter(dict.fromkeys([*KINDS, "other"], 0))
    for problem in (problem for verdict in report.verdicts for problem in verdict.problems):
        found[next((kind for kind, words in KINDS.items() if any(word in problem for word in words)), "other")] += 1
    return found


def main() -> int:
    """Kill, count, print."""
    parser = argparse.ArgumentParser(description="Kill mixed scenarios at random instants and count what is wrong.")
    parser.add_argument("kills", nargs="?", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with closing(Lives(server(), folder)) as lives:
            matrices = [Matrix(lives, folder, scenario) for scenario in scenarios.SCENARIOS]
            report = kill(matrices, given.kills, random.Random(given.seed))
    found, repeats = wrongs(report), sum(verdict.repeats for verdict in report.verdicts)
    print(f"{len(report.verdicts)} runs of {len(matrices)} scenarios, {report.kills} kills, seed {given.seed}:")
    print(", ".join(f"{number} {kind}" for kind, number in found.items()))
    print(f"{repeats} calls in flight were made again, in {time.monotonic() - began:.0f} s")
    for verdict in report.verdicts:
        for problem in verdict.problems:
            print(f"{verdict.case}\n    {problem}")
    return 1 if sum(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
