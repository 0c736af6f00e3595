"""`crash_test`: kill a scenario at every boundary, start it again, and compare with the undisturbed program."""

from __future__ import annotations

import contextlib
import random as chances
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy

from durable_swarm.checks import check_whole
from durable_swarm.engine import database as databases
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.crash.boundaries import Place
from durable_swarm.testing.crash.ledger import read_ledger
from durable_swarm.testing.crash.lives import End, Scenario, Task, live, scenario_of
from durable_swarm.testing.crash.outcome import Difference, Outcome, differences, name_calls, runs_of
from durable_swarm.testing.crash.report import CrashReport, Death, Finding, finding, undisturbed

HIT = 0.95
"""The part of the planned kills that must take place for a test to prove anything."""

Case = tuple[Death, ...]
"""Where one life after the other is killed."""


def crash_test(
    scenario: Callable[..., Any],
    *,
    random: int = 0,
    pairs: bool = False,
    seed: int = 0,
    only: Sequence[int] | None = None,
    database: str | None = None,
    at_least_once: Collection[str] = (),
    workers: int = 4,
    timeout: float = 60.0,
    check: bool = True,
) -> CrashReport:
    """Kill a program at each of its durable boundaries, start it again each time, and compare how it ends.

    `scenario` is a function at module level that starts a run (with a `run_id`, and a scripted or recorded model) and
    waits for it. It finds the database to work on in the environment, where `DurableSwarm()` looks, or takes it as the
    argument `database`. It runs once undisturbed; then, for each boundary and each side of it, a fresh process runs it
    on a fresh database and is killed there with SIGKILL, and another process runs it again. Runs, messages, context
    variables, steps, what the scenario returns, and the effects reported with `effect` must be the same.

    - `random`: instead of every boundary, kill at so many instants drawn with `seed`.
    - `pairs`: kill the second life too, at one of its boundaries drawn with `seed`.
    - `only`: numbers of boundaries (from 1) to try, to repeat what a report names.
    - `database`: a PostgreSQL URL; each case gets a database of its own, named after it and dropped afterwards. By
      default each gets a SQLite file.
    - `at_least_once`: names of effects that may be repeated.
    - `workers`: how many cases are tried at once. `timeout`: seconds after which a life that has not ended hangs.
    - `check`: raise `CrashTestFailed` if anything is found; with False the report is given all the same.

    Raises `CrashTestFailed`, an AssertionError whose message is the report, and `ConfigurationError` for a scenario
    that another process cannot find, that fails undisturbed, or that works on another database.
    """
    for name, value, least in (("random", random, 0), ("workers", workers, 1)):
        check_whole(name, value, least)
    test = _Test(scenario_of(scenario), database, frozenset(at_least_once), timeout)
    report = test.run(workers, random=random, pairs=pairs, seed=seed, only=only)
    if check:
        report.check()
    return report


@dataclass
class _Test:
    scenario: Scenario
    database: str | None
    at_least_once: frozenset[str]
    timeout: float
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def run(self, workers: int, *, random: int, pairs: bool, seed: int, only: Sequence[int] | None) -> CrashReport:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crash-test-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            expected, end = self._undisturbed(folder)
            again, second = self._undisturbed(folder)
            report = CrashReport(str(self.scenario), end.passed, undisturbed(differences(expected, again, ())))
            if not report.ok:
                return report
            # The first life had to wait for the server of lives.
            cases = _cases(second, random=random, pairs=pairs, seed=seed, only=only)
            with ThreadPoolExecutor(workers) as pool:
                verdicts = list(pool.map(lambda case: self._try(folder, case, expected, end.passed), cases))
        findings = [finding for verdict in verdicts for finding in verdict.findings]
        if not random:
            findings += _missed(len(cases), sum(verdict.kills > 0 for verdict in verdicts), end.passed)
        kills = sum(verdict.kills for verdict in verdicts)
        return replace(report, findings=findings, cases=len(cases), kills=kills, seconds=time.monotonic() - began)

    def _undisturbed(self, folder: Path) -> tuple[Outcome, End]:
        with self._place(folder) as task:
            end = live(task, timeout=self.timeout)
            if end.how != "returned":
                what = end.value or f"it did not end within {self.timeout:g} s"
                raise ConfigurationError(f"the scenario {self.scenario} fails undisturbed: {what}\n{end.log}")
            outcome = Outcome(end.value, runs_of(task.database), read_ledger(task.ledger))
        if not outcome.runs:
            raise ConfigurationError(
                f"the scenario {self.scenario} made no run in the database it was given: use DurableSwarm() without "
                "`database`, or give it the scenario's argument `database`"
            )
        return outcome, replace(end, passed=tuple(name_calls(label, outcome.runs) for label in end.passed))

    def _try(self, folder: Path, case: Case, expected: Outcome, boundaries: tuple[str, ...]) -> _Verdict:
        """Live and be killed, as often as the case says, live once more, and judge what is there."""
        with self._place(folder) as task:
            kills = 0
            for death in (*case, None):
                at, after = (death, None) if isinstance(death, Place) else (None, death)
                end = live(replace(task, number=kills, at=at), timeout=self.timeout, kill_after=after)
                if end.how != "killed":
                    break
                kills += 1
            found = list(self._judge(end, task, expected))
        return _Verdict(kills, [finding(difference, case, boundaries) for difference in found])

    def _judge(self, end: End, task: Task, expected: Outcome) -> Iterator[Difference]:
        if end.how == "hung":
            waits = [run.waits_for for run in runs_of(task.database) if run.waits_for]
            why = f": {waits[0]}" if waits else f"\n{end.log[-3000:]}"
            yield Difference("hung", f"the restarted program did not end within {self.timeout:g} s{why}")
        elif end.how == "raised":
            yield Difference("raised", f"the restarted program raised {end.value}")
        else:
            got = Outcome(end.value, runs_of(task.database), read_ledger(task.ledger))
            yield from differences(expected, got, self.at_least_once)

    @contextlib.contextmanager
    def _place(self, folder: Path) -> Iterator[Task]:
        """Give a folder and a database to one case, and take them away again."""
        number = next(self._numbers)
        own = folder / str(number)
        if self.database is None:
            yield Task(self.scenario, f"sqlite:///{own}/crash.sqlite", own, 0)
            return
        url = sqlalchemy.make_url(self.database)
        url = url.set(database=f"{url.database}_crash_{folder.name[-8:].lower()}_{number}")
        try:
            yield Task(self.scenario, url.render_as_string(hide_password=False), own, 0)
        finally:
            databases.drop(url)


@dataclass(frozen=True)
class _Verdict:
    kills: int
    findings: list[Finding]


def _cases(end: End, *, random: int, pairs: bool, seed: int, only: Sequence[int] | None) -> list[Case]:
    """Plan where to kill."""
    chance = chances.Random(seed)
    if random:
        firsts: list[Death] = [chance.uniform(0, end.seconds) for _ in range(random)]
    else:
        numbers = range(1, len(end.passed) + 1) if only is None else only
        if wrong := [number for number in numbers if not 1 <= number <= len(end.passed)]:
            raise ConfigurationError(f"there is no boundary {wrong[0]}: the scenario passes {len(end.passed)}")
        firsts = [place for number in numbers for place in (Place(number, "before"), Place(number, "after"))]
    if not pairs:
        return [(first,) for first in firsts]
    return [(first, Place(chance.randint(1, len(end.passed)), chance.choice(("before", "after")))) for first in firsts]


def _missed(planned: int, hit: int, boundaries: Sequence[str]) -> list[Finding]:
    """A test whose kills miss their mark proves nothing, however well the program ends."""
    if hit >= planned * HIT:
        return []
    text = f"only {hit} of {planned} programs reached their boundary"
    advice = f"they must pass the same {len(boundaries)} boundaries in each process"
    return [Finding("missed", text, None, "as planned", advice, "all cases")]
