"""Random storms over the mixed scenario: processes killed, stopped and asked to end, connections cut, servers crashed.

    python -m faults.nemesis --runs 200                            both databases in turn, all faults
    python -m faults.nemesis --seed 7 --database postgres --faults stop,cut --runs 24
    python -m faults.nemesis --seconds 3600 --runs 100000          as many as an hour allows

One to three workers, a plain program and three people share a database. When the faults are over, every run must end
within half a minute, and an auditor compares records, ledger and decisions. Prints each violation with the seed of its
storm, which `--seed` repeats, and ends with 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from faults.storms.storm import FAULTS, LEASE, ON_SQLITE, Crashing, Outcome, Storm, Weather, crashing_server
from tests.crash.lives import server

STORM_RUNS, STORM_SECONDS = 24, 30.0
"""How many runs one storm has, and how long it lasts."""


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Have random faults under mixed runs, and audit what came of them.")
    parser.add_argument("--seed", type=int, help="that of the first storm; each further one has the next")
    parser.add_argument("--runs", type=int, default=200, help="how many runs in all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no storm after this time")
    parser.add_argument("--faults", default=",".join(FAULTS), help="any of " + ", ".join(FAULTS))
    parser.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument(
        "--storm-seconds", type=float, default=STORM_SECONDS, help="how long the faults of a storm last"
    )
    parser.add_argument("--storm-runs", type=int, default=STORM_RUNS, help="how many runs a storm has")
    parser.add_argument("--longest", type=float, default=2 * LEASE, help="for how long a process stands still at most")
    parser.add_argument("--keep", type=Path, help="a folder that takes logs and ledger of storms with violations")
    given = parser.parse_args()
    given.faults = tuple(given.faults.split(","))
    if unknown := set(given.faults) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    return given


def weather_of(given: argparse.Namespace, seed: int, runs: int) -> Weather:
    """Return the weather of the storm with this seed."""
    chance = random.Random(f"weather {seed}")
    database = chance.choice(["sqlite", "postgres"]) if given.database == "both" else given.database
    faults = [fault for fault in given.faults if database == "postgres" or fault in ON_SQLITE]
    return Weather(seed, database, tuple(faults) or ("kill",), runs, given.storm_seconds, longest=given.longest)


def rage(weather: Weather, crashing: Crashing | None, keep: Path | None) -> Outcome:
    """Have one storm in a folder of its own, and print what came of it."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nemesis-"))
    try:
        where = (crashing.url, crashing.crash) if crashing and weather.database == "postgres" else (None, None)
        storm = Storm(server(), weather, folder, *where)
        outcome = storm.rage()
        if outcome.wrong and keep:
            shutil.copytree(folder, keep / f"seed-{weather.seed}-{weather.database}", dirs_exist_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shape = f"{weather.database}, {storm.flavour} tools, {storm.client} client, {storm.workers} workers"
    faults = ", ".join(f"{number} {kind}" for kind, number in sorted(outcome.faults.items()) if number)
    print(
        f"seed {weather.seed}: {outcome.runs} runs on {shape}: {faults}; {time.monotonic() - began:.0f} s", flush=True
    )
    for account in outcome.wrong:
        print(f"  {account}", flush=True)
    return outcome


def main() -> int:
    """Have storms until all runs are made or the time is over, and print the sums."""
    given = options()
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    logging.getLogger("durable_swarm").setLevel(logging.ERROR)  # What waits for an agent waits for the program's.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = int(time.time()) if given.seed is None else given.seed
    began, runs = time.monotonic(), 0
    faults: Counter[str] = Counter()
    figures: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    slowest: list[float] = []
    with contextlib.ExitStack() as stack:
        crashing = None if given.database == "sqlite" else stack.enter_context(crashing_server())
        while runs < given.runs and time.monotonic() - began < given.seconds:
            outcome = rage(weather_of(given, seed, min(given.storm_runs, given.runs - runs)), crashing, given.keep)
            seed, runs = seed + 1, runs + outcome.runs
            faults += outcome.faults
            figures += outcome.figures
            slowest.append(outcome.slowest)
            wrong.update(account.partition(":")[0] for account in outcome.wrong)
    print(f"{runs} runs; faults: {dict(faults)}; {dict(figures)}; {time.monotonic() - began:.0f} s")
    if slowest:
        print(f"all runs had ended {max(slowest):.0f} s after a storm's last fault, median {median(slowest):.0f} s")
    print(f"violations: {dict(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
