"""`crash_test`: kill a scenario at every boundary, start it again, and compare with the undisturbed program."""

from __future__ import annotations

import contextlib
import logging
import random as chances
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import sqlalchemy

from durable_swarm.engine.database import connection as databases
from durable_swarm.engine.database import urls
from durable_swarm.errors import ConfigurationError
from durable_swarm.progress import progress
from durable_swarm.runs import ENDED
from durable_swarm.testing.crash.boundaries import Death, Instant, KillPoint
from durable_swarm.testing.crash.ledger import read_ledger
from durable_swarm.testing.crash.outcome import Difference, Outcome, differences, name_calls, runs_of
from durable_swarm.testing.crash.program import PRELOAD, End, Scenario, Task, live, scenario_of
from durable_swarm.testing.crash.report import ADVICE, CrashReport, Finding, finding, undisturbed
from durable_swarm.testing.crash.templates import copy_template, make_template
from durable_swarm.validation import check_seconds, check_whole

log = logging.getLogger("durable_swarm")

HIT = 0.95
"""The share of the planned kills that must take place for a test to prove anything."""


def crash_test(
    scenario: Callable[..., object],
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
    """Kill a program at each of its durable boundaries, start it again each time, and compare the outcomes.

    `scenario` is a function at module level, `async` or not, that starts a run (with a `run_id`, and a scripted model)
    and waits for it. It reads the database from the environment, as `DurableSwarm()` does, or takes it as the argument
    `database`. It runs once undisturbed; then, for each boundary and each side of it, a fresh process runs it on a
    fresh database and is killed there with SIGKILL, and another process runs it again. Runs, messages, context
    variables, steps, the return value, and the effects reported with `effect` must be the same.

    - `random`: instead of every boundary, kill at this many instants between the first and the last, drawn with `seed`.
      A few prove little, because most instants miss a fault of one boundary.
    - `pairs`: try each case once more, with the second execution killed too, at a boundary drawn with `seed`.
    - `only`: numbers of boundaries (from 1, as in `CrashReport.boundaries`) to try, to repeat what a report names.
    - `database`: a PostgreSQL URL; each case gets a database of its own, named after it and dropped afterwards. By
      default each gets a SQLite file.
    - `at_least_once`: names of effects that may be repeated.
    - `workers`: how many cases are tried at once. `timeout`: seconds after which an execution counts as hanging.
    - `check`: raise `CrashTestFailed` if anything is found; with False the report is returned in any case.

    Raises `CrashTestFailed`, an AssertionError whose message is the report, and `ConfigurationError` for a scenario
    that another process cannot find, that fails undisturbed, or that works on another database.
    """
    __tracebackhide__ = True
    for name, value, least in (("random", random, 0), ("workers", workers, 1)):
        check_whole(name, value, least)
    check_seconds("timeout", timeout, above_zero=True)
    if random and only is not None:
        raise ConfigurationError(
            "`only` and `random` exclude each other: kill at these boundaries, or at random instants"
        )
    names = [at_least_once] if isinstance(at_least_once, str) else at_least_once
    test = _Test(scenario_of(scenario), _server(database), frozenset(names), timeout, chances.Random(seed))
    report = test.run(workers, random=random, pairs=pairs, only=only)
    if check:
        report.check()
    return report


def _server(url: str | None) -> sqlalchemy.URL | None:
    if url is not None and urls.is_sqlite(urls.choose(url)):
        raise ConfigurationError("`database` must be a postgresql:// URL; without it each case gets a SQLite file")
    return None if url is None else urls.choose(url)


@dataclass(frozen=True)
class _Verdict:
    """The result of one case: a missed kill, the number of kills, and the differences."""

    missed: bool
    kills: int
    findings: list[Finding]
    passed: tuple[str, ...] = ()
    """The boundaries of the last execution."""


@dataclass
class _Test:
    scenario: Scenario
    server: sqlalchemy.URL | None
    at_least_once: frozenset[str]
    timeout: float
    chance: chances.Random
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _template: sqlalchemy.URL | None = None
    """The template of all databases; without one an execution makes its own, as the first does."""

    def run(self, workers: int, *, random: int, pairs: bool, only: Sequence[int] | None) -> CrashReport:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crash-test-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            expected, end = self._undisturbed(folder)
            with self._copies(folder):
                again, _ = self._undisturbed(folder)
                report = CrashReport(str(self.scenario), end.passed, undisturbed(differences(expected, again, ())))
                if not report.ok:
                    return report
                deaths = self._deaths(end, random, only)
                draws = [self.chance.random() for _ in deaths]
                try_one = partial(self._try, folder, expected=expected, boundaries=end.passed, pairs=pairs)
                with ThreadPoolExecutor(workers) as pool:
                    tried = self._reporting(pool.map(try_one, deaths, draws), len(deaths))
                    verdicts = [verdict for some in tried for verdict in some]
        findings = [finding for verdict in verdicts for finding in verdict.findings]
        findings += _missed(len(verdicts), sum(verdict.missed for verdict in verdicts), 0.5 if random else HIT)
        kills = sum(verdict.kills for verdict in verdicts)
        return replace(report, findings=findings, cases=len(verdicts), kills=kills, seconds=time.monotonic() - began)

    def _reporting(self, tried: Iterator[list[_Verdict]], total: int) -> Iterator[list[_Verdict]]:
        """Pass the verdicts on. Show on a terminal how far the test is, and log it some ten times."""
        with progress(f"Crash test of {self.scenario}", total) as tell:
            for number, verdicts in enumerate(tried, start=1):
                yield verdicts
                tell(number)
                if number % max(total // 10, 1) == 0 or number == total:
                    log.info("crash test of %s: %d of %d kills tried", self.scenario, number, total)

    def _deaths(self, end: End, random: int, only: Sequence[int] | None) -> list[Death]:
        """Plan the kills of the first executions."""
        if random:
            return [self._instant(end) for _ in range(random)]
        passes = range(1, len(end.passed) + 1)
        numbers = passes if only is None else [only] if isinstance(only, int) else list(only)
        if not numbers or any(number not in passes for number in numbers):
            raise ConfigurationError(
                f"`only` must name boundaries from 1 to {len(passes)}, which the scenario passes; not {only!r}"
            )
        return [place for number in numbers for place in (KillPoint(number, "before"), KillPoint(number, "after"))]

    def _instant(self, end: End) -> Instant:
        """Draw an instant between two boundaries, independent of an execution's speed."""
        number = self.chance.randint(1, max(len(end.times) - 1, 1))
        gap = end.times[number] - end.times[number - 1] if number < len(end.times) else 0.0
        return Instant(number, self.chance.uniform(0, gap))

    def _undisturbed(self, folder: Path) -> tuple[Outcome, End]:
        with self._place(folder) as task:
            end = live(task, timeout=self.timeout)
            if end.how != "returned":
                raise ConfigurationError(self._why_not(end))
            outcome = Outcome(end.value, runs_of(task.database), read_ledger(task.ledger))
        if not outcome.runs:
            raise ConfigurationError(
                f"the scenario {self.scenario} made no run in the database it was given: use DurableSwarm() without "
                "`database`, or give it the scenario's argument `database`"
            )
        if not end.passed:
            raise ConfigurationError(
                f"the scenario {self.scenario} made its runs in another process, where they cannot be watched; it must "
                "use DurableSwarm itself"
            )
        if unended := [run for run in outcome.runs if run.status not in ENDED]:
            raise ConfigurationError(
                f"the scenario {self.scenario} returned before its run {unended[0].id!r} had ended; wait for it with "
                "Run.result()"
            )
        return outcome, replace(end, passed=tuple(name_calls(label, outcome.runs) for label in end.passed))

    def _why_not(self, end: End) -> str:
        what = end.value or f"it did not end within {self.timeout:g} s"
        guard = "; a script calls crash_test under `if __name__ == '__main__':`"
        hint = guard if self.scenario.module == "__main__" and not end.passed else ""
        return f"the scenario {self.scenario} fails undisturbed: {what}{hint}\n{end.log[-3000:]}"

    def _try(
        self, folder: Path, death: Death, chance: float, expected: Outcome, boundaries: tuple[str, ...], pairs: bool
    ) -> list[_Verdict]:
        """Try a case; with `pairs` another one, with a second kill at a boundary that the second execution had."""
        single = self._judged(folder, [death], expected, [boundaries])
        if not pairs or single.missed or not single.passed:
            return [single]
        number = 1 + int(chance * len(single.passed))
        second = KillPoint(number, "before" if int(chance * 1000) % 2 else "after")
        return [single, self._judged(folder, [death, second], expected, [boundaries, single.passed])]

    def _judged(
        self, folder: Path, deaths: list[Death], expected: Outcome, boundaries: list[tuple[str, ...]]
    ) -> _Verdict:
        """Run one execution for each planned kill and one without, and judge the outcome."""
        with self._place(folder) as task:
            kills = 0
            for at in (*deaths, None):
                end = live(replace(task, number=kills, at=at), timeout=self.timeout)
                if end.how != "killed":
                    break
                kills += 1
            found = list(self._judge(end, task, expected))
        findings = [finding(difference, deaths, boundaries) for difference in found]
        passed = tuple(name_calls(label, expected.runs) for label in end.passed)
        return _Verdict(kills < len(deaths), kills, findings, passed)

    def _judge(self, end: End, task: Task, expected: Outcome) -> Iterator[Difference]:
        if end.how == "hung":
            waits = self._held_by(end, task)
            yield Difference("hung", f"the restarted program did not end within {self.timeout:g} s: {waits}")
        elif end.how == "raised":
            yield Difference("raised", f"the restarted program failed: {end.value}")
        elif end.how == "killed":
            yield Difference("raised", "the restarted program was killed, by nobody here")
        else:
            got = Outcome(end.value, runs_of(task.database), read_ledger(task.ledger))
            yield from differences(expected, got, self.at_least_once)

    def _held_by(self, end: End, task: Task) -> str:
        """Describe what a hanging execution waits for: its run, else the current lines of the scenario's file."""
        waits = [run.waits_for for run in runs_of(task.database) if run.waits_for]
        lines = [line.strip() for line in end.log.splitlines() if self.scenario.file in line]
        return (waits or lines or [end.log[-1000:]])[0]

    @contextlib.contextmanager
    def _place(self, folder: Path) -> Iterator[Task]:
        """Provide a folder and a database for one case, and remove them afterwards."""
        number = next(self._numbers)
        own, url = folder / str(number), self._url(folder, str(number))
        if self._template is not None:
            copy_template(self._template, url)
        try:
            yield Task(self.scenario, url.render_as_string(hide_password=False), own, 0)
        finally:
            if self.server is not None:
                databases.drop(url)

    def _url(self, folder: Path, name: str) -> sqlalchemy.URL:
        """Name a database of this test."""
        if self.server is None:
            return urls.choose(f"sqlite:///{folder / name}/crash.sqlite")
        return self.server.set(database=f"{self.server.database}_crash_{folder.name[-8:].lower()}_{name}")

    @contextlib.contextmanager
    def _copies(self, folder: Path) -> Iterator[None]:
        """Copy the databases of this block from one that was opened once, because opening costs most of the time."""
        template = self._url(folder, "template")
        (folder / "template").mkdir()
        try:
            make_template(template, folder / "template" / "log", PRELOAD)
            self._template = template
            yield
        finally:
            self._template = None
            if self.server is not None:
                databases.drop(template)


def _missed(planned: int, missed: int, least: float) -> list[Finding]:
    """Report missed kills, because a test whose kills miss proves nothing, however well the program ends."""
    if planned - missed >= planned * least:
        return []
    text = f"only {planned - missed} of {planned} planned deaths took place"
    return [Finding("missed", text, None, "as planned", ADVICE["missed"], "all cases")]
