"""The crash matrix: kill a scenario before and after each of its durable boundaries, and compare the next life's end.

What must hold, whatever the place:

- the run ends, with the messages, context variables, agent and tokens of a life that nobody disturbed;
- every effect happened, under the same idempotency key, and none that does not belong to the scenario;
- an effect whose checkpoint was in the database when the process died does not happen again;
- at most the calls in flight happen again, and their tools are told so;
- the kill really took place.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import sqlalchemy

from durable_swarm.engine.database.urls import choose
from durable_swarm.testing.crash.boundaries import KillPoint
from durable_swarm.testing.crash.ledger import read_lines
from durable_swarm.testing.crash.templates import copy_template, open_once
from durable_swarm.types import Message
from faults.shim import Fault
from tests.crash import disk, scenarios, streamed
from tests.crash.boundaries import RUN_PREFIX
from tests.crash.lives import End, Lives
from tests.crash.scenarios import NOT_RECORDED

LONG = os.environ.get("DURABLE_SWARM_LONG", "") not in ("", "0")
"""Whether to try everything, or what a change should wait for."""

COLOURS = ("sync", "async")
WAYS = ("attach", "recover")
WORKERS = 4
"""Cases at once: a life mostly waits."""


Death = KillPoint | float | Fault
"""Where a life is killed, or how many seconds after its start; or what goes wrong with its disk."""

Case = tuple[str, str, *tuple[Death, ...]]
"""A colour, a way of coming back, and where one life after the other is killed."""


@dataclass(frozen=True)
class Effect:
    """One line of a ledger; `checkpoint` is the row that keeps the effect from happening again, once it is there."""

    key: str
    label: str
    attempt: int
    checkpoint: tuple[str, str]

    @property
    def what(self) -> tuple[str, str]:
        """What happened: the same for a repetition."""
        return self.key, self.label


def read_ledger(path: Path, run_id: str) -> list[Effect]:
    """Give the effects so far, in order, with keys that do not depend on the run's id."""
    return [
        Effect(line["key"].replace(run_id, "RUN", 1), line["label"], line["attempt"], tuple(line["checkpoint"]))
        for line in read_lines(path)
    ]


def recorded(url: str) -> set[tuple[str, str]]:
    """Give the checkpoints that are in the database: steps by number, and undecorated tools by their ended workflow."""
    engine = sqlalchemy.create_engine(_with_driver(url), poolclass=sqlalchemy.NullPool)
    schema = "dbos." if engine.dialect.name == "postgresql" else ""
    steps = f"SELECT workflow_uuid, function_id FROM {schema}operation_outputs WHERE output IS NOT NULL"
    ended = f"SELECT workflow_uuid FROM {schema}workflow_status WHERE status = 'SUCCESS'"
    if not sqlalchemy.inspect(engine).has_table("operation_outputs", schema=schema.rstrip(".") or None):
        return set()
    with engine.connect() as connection:
        found = {(str(run), str(number)) for run, number in connection.execute(sqlalchemy.text(steps))}
        return found | {(str(run), "None") for (run,) in connection.execute(sqlalchemy.text(ended))}


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


@dataclass
class Verdict:
    """What came of one case: where the process was killed, how often, how much was repeated, and what is wrong."""

    case: str
    kills: int = 0
    repeats: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Matrix:
    """Kills one scenario at its boundaries, or at any instant."""

    lives: Lives
    folder: Path
    scenario: str
    postgres: str | None = None
    """A fresh PostgreSQL database of which each case gets a copy; by default each gets a fresh SQLite file."""

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self._undisturbed: dict[str, tuple[End, list[Effect]]] = {}
        self._template = self.postgres or f"sqlite:///{self.folder}/template-{self.scenario}.sqlite"

    def undisturbed(self, colour: str) -> tuple[End, list[Effect]]:
        """Give the end and the effects of a life that nobody disturbed."""
        if colour not in self._undisturbed:
            if not self.postgres and not self._undisturbed:
                self.lives.live(open_once, self._template, ledger=self.folder / "template.ledger")
            trial = self._trial()
            end = trial.live(colour, "attach", None)
            effects = trial.effects()
            assert len({effect.what for effect in effects}) == len(effects), (
                "the scenario's effects cannot be told apart"
            )
            self._undisturbed[colour] = end, effects
        return self._undisturbed[colour]

    def places(self, colour: str) -> list[KillPoint]:
        """Give every place where a life of the scenario can be killed."""
        end, _ = self.undisturbed(colour)
        return [place for number in range(1, len(end.passed) + 1) for place in both_sides(number)]

    def _trial(self, *, copy: bool = False) -> _Trial:
        number = next(self._numbers)
        name = f"{self.scenario}-{number}"
        url = f"{self.postgres}_{number}" if self.postgres else f"sqlite:///{self.folder}/{name}.sqlite"
        if copy:
            copy_template(choose(self._template), choose(url))
        return _Trial(self, f"{RUN_PREFIX}{name}", url, self.folder / f"{name}.ledger")

    def judge(self, colour: str, way: str, *deaths: Death) -> Verdict:
        """Kill the scenario's lives so, one after the other, and judge the life that follows."""
        expected, effects = self.undisturbed(colour)
        where = ", then ".join(_told(death, expected) for death in deaths)
        verdict = Verdict(f"{self.scenario} {colour} {way}: killed {where}")
        try:
            # What dies at a boundary has made its tables; what dies at any instant, or write, may be about to.
            trial = self._trial(copy=all(isinstance(death, KillPoint) for death in deaths))
            trial.judge(verdict, colour, way, deaths, expected, effects)
        except AssertionError as error:
            verdict.problems.append(str(error)[-3000:])
        return verdict

    def judge_all(self, cases: Sequence[Case]) -> Report:
        """Judge many cases, as many at once as there are workers."""
        for colour in {case[0] for case in cases}:
            self.undisturbed(colour)
        with ThreadPoolExecutor(WORKERS) as pool:
            verdicts = list(pool.map(lambda case: self.judge(*case), cases))
        return Report(verdicts)


@dataclass(frozen=True)
class Report:
    """All verdicts of a matrix."""

    verdicts: list[Verdict]

    @property
    def kills(self) -> int:
        """How many lives were killed."""
        return sum(verdict.kills for verdict in self.verdicts)

    def check(self, least_kills: int) -> None:
        """Raise AssertionError if anything is wrong, or if so few lives were killed that nothing is proved."""
        wrong = [verdict for verdict in self.verdicts if verdict.problems]
        told = "\n".join(f"{verdict.case}\n    " + "\n    ".join(verdict.problems) for verdict in wrong[:12])
        assert not wrong, f"{len(wrong)} of {len(self.verdicts)} cases are wrong:\n{told}"
        assert self.kills >= least_kills > 0, f"only {self.kills} of {least_kills} lives were killed"


@dataclass
class _Trial:
    """One trial under way: a run id, a database, a ledger."""

    matrix: Matrix
    run_id: str
    url: str
    ledger: Path

    def live(self, colour: str, way: str, at: Death | None) -> End:
        name = self.matrix.scenario
        if isinstance(at, Fault):
            return self.matrix.lives.live(disk.live, at, name, self.url, self.run_id, colour, way, ledger=self.ledger)
        return self.matrix.lives.live(
            scenarios.live, name, self.url, self.run_id, colour, way, ledger=self.ledger, at=at
        )

    def effects(self) -> list[Effect]:
        return read_ledger(self.ledger, self.run_id)

    def judge(
        self,
        verdict: Verdict,
        colour: str,
        way: str,
        deaths: Sequence[Death],
        expected: End,
        effects: list[Effect],
    ) -> None:
        """Live, be killed and live again; note in `verdict` what is wrong."""
        finished: list[tuple[int, set[tuple[str, str]]]] = []
        for number, death in enumerate([*deaths, None]):
            end = self.live(colour, way if number else "attach", death)
            if not end.killed:
                break
            verdict.kills += 1
            if isinstance(death, Fault):
                verdict.problems += disk.damages(disk.file_of(self.url))
            finished.append(self._finished())
        assert not end.killed, "the last life was killed too, by nobody here"
        made = self.effects()
        verdict.repeats = _repeats(made)
        verdict.problems += [
            *_compare(expected.value, end.value),
            *_misplaced(made),
            *self._told(end.value["messages"]),
            *judge_effects(made, effects, finished, verdict.kills * scenarios.IN_FLIGHT[self.matrix.scenario]),
        ]

    def _told(self, messages: list[Message]) -> list[str]:
        """Say what is wrong with the events of a streamed run."""
        if not self.matrix.scenario.startswith("streamed"):
            return []
        return streamed.judge(self.url, self.run_id, messages, self.matrix.folder / streamed.notes(self.run_id))

    def _finished(self) -> tuple[int, set[tuple[str, str]]]:
        """Give how many effects there are so far, and those of them that may never happen again."""
        made, rows = self.effects(), recorded(self.url)
        return len(made), {effect.what for effect in made if effect.checkpoint in rows}


def _compare(expected: scenarios.Answer, got: scenarios.Answer) -> Iterator[str]:
    for part, value in expected.items():
        if got[part] != value:
            yield f"{part} differ: {got[part]!r}, undisturbed {value!r}"


def _misplaced(made: list[Effect]) -> Iterator[str]:
    """Only a run that had no effect yet may be missing from the database."""
    labels = [effect.label for effect in made]
    if NOT_RECORDED in labels[sum(label == NOT_RECORDED for label in labels) :]:
        yield "the run had effects, but the database did not know it"


def judge_effects(
    made: list[Effect], expected: list[Effect], finished: list[tuple[int, set[tuple[str, str]]]], bound: int
) -> Iterator[str]:
    """Say what is wrong with the effects of all lives of a run.

    `expected` are those of an undisturbed life. `finished` tells, for each death, how many effects there were by then
    and which of them were recorded. `bound` is how many may be repeated.
    """
    happened = {effect.what for effect in made if effect.label != NOT_RECORDED}
    wanted = {effect.what for effect in expected}
    if lost := wanted - happened:
        yield f"lost effects: {sorted(lost)}"
    if foreign := happened - wanted:
        yield f"effects under another key: {sorted(foreign)}"
    for lines, done in finished:
        if again := {effect.what for effect in made[lines:]} & done:
            yield f"recorded, and executed again: {sorted(again)}"
    if _repeats(made) > bound:
        yield f"{_repeats(made)} effects repeated, at most {bound} were in flight"
    if untold := [effect.what for effect in _repetitions(made) if effect.label != "model" and effect.attempt < 2]:
        yield f"repeated without telling the tool: {untold}"


def _repetitions(made: list[Effect]) -> Iterator[Effect]:
    seen: Counter[tuple[str, str]] = Counter()
    for effect in made:
        seen[effect.what] += 1
        if seen[effect.what] > 1 and effect.label != NOT_RECORDED:
            yield effect


def _repeats(made: list[Effect]) -> int:
    return sum(1 for _ in _repetitions(made))


def _told(death: Death, expected: End) -> str:
    if isinstance(death, float):
        return f"after {death:.3f} s"
    if isinstance(death, Fault):
        return str(death)
    label = expected.passed[death.number - 1] if death.number <= len(expected.passed) else "of a later life"
    return f"{death.side} boundary {death.number} ({label})"


def both_sides(number: int) -> tuple[KillPoint, KillPoint]:
    """Give the two places at one boundary."""
    return KillPoint(number, "before"), KillPoint(number, "after")


def every_place(matrix: Matrix, choose: Callable[[int], bool] = lambda _: True) -> list[Case]:
    """Give one case for each place: colours and ways of coming back take turns."""
    cases: list[Case] = []
    for shift, colour in enumerate(COLOURS):
        for index, place in enumerate(matrix.places(colour)):
            if (index + index // 2 + shift) % 2 == 0 and choose(index // 2):
                cases.append((colour, WAYS[(index // 2 + shift) % 2], place))
    return cases


def every_combination(matrix: Matrix) -> list[Case]:
    """Give a case for each place, colour and way of coming back."""
    return [(colour, way, place) for colour in COLOURS for place in matrix.places(colour) for way in WAYS]
