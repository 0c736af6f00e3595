"""One storm: processes on one fresh database, random faults for some seconds, then calm, and the judgement."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TypeVar

from durable_swarm import DurableSwarm
from durable_swarm.postgres import Server
from faults.storms import audit, ledger, lives, people
from faults.storms.lives import Life, Task
from tests.support.postgres import fresh_database, temporary_folder
from tests.support.proxy import Plan, proxied

FAULTS = ("kill", "stop", "term", "int", "cut", "restart")
ON_SQLITE = ("kill", "stop", "term", "int")
"""The faults that a database in a file can meet."""
T = TypeVar("T")
LEASE = 15.0
GRACE = 3.0
TO_END = GRACE + 10 + 12
"""Seconds after which a process that was asked to end hangs: its grace, ten that it may take more, a slow machine."""
PATIENCE = 30.0
"""Seconds after the last fault within which every run ends, or others do something: a slow machine takes its time."""
TURNS = (
    "look,note,fetch", "pay", "refund", "ask", "ask,nap,look", "delegate", "delegate,look", "shaky",
    "pay,note", "nap,nap", "refund,refund", "note,fetch",
)  # fmt: skip


class Crashing:
    """A PostgreSQL server that can be crashed; its commits survive that, though not a power cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = Server(folder, settings={"max_connections": "200", "fsync": "off"}, use_docker=False)
        self.url = self._server.start()

    def crash(self, seconds: float) -> None:
        """Have the server end without a word to anybody, and start it again after some seconds."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(seconds)
        self._server.start()


@contextlib.contextmanager
def crashing_server() -> Iterator[Crashing]:
    """Give a server for as long as the block lasts."""
    with temporary_folder() as folder:
        yield Crashing(folder)


@dataclass
class Weather:
    """What a storm is made of; all of it follows from the seed."""

    seed: int
    database: str
    faults: tuple[str, ...]
    runs: int
    seconds: float
    gap: float = 1.5
    """Seconds between two faults, on average."""
    longest: float = 2 * LEASE
    """Seconds for which a process stands still at most."""


@dataclass
class Outcome:
    """What came of a storm: how often each fault took place, what is wrong, and figures."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    """Seconds from the last fault until the last run had ended."""


def tasks_of(chance: random.Random, count: int) -> list[Task]:
    """Return the runs of a storm: a handoff first, then some of the turns in any order."""
    found = []
    for number in range(count):
        plan = "; ".join(["look,to_clerk", *chance.sample(TURNS, chance.randint(3, 6))])
        way = "" if number % 2 else chance.choice(lives.WAYS)
        found.append(Task(f"n{number}", plan, way))
    return found


class Storm:
    """Start the processes of one storm, and let it rage.

    The database is a file in `folder`, or a fresh one in the server, which `crash(seconds)` crashes and starts again.
    """

    def __init__(
        self,
        context: ForkServerContext,
        weather: Weather,
        folder: Path,
        server_url: str | None,
        crash: Callable[[float], None] | None = None,
    ) -> None:
        self._context, self._weather, self._folder = context, weather, folder
        self._server_url, self._crash = server_url, crash
        self._chance = random.Random(weather.seed)
        self.outcome = Outcome(weather.runs)
        self._tasks = tasks_of(self._chance, weather.runs)
        self._started = 0
        self._due: list[tuple[float, str]] = []
        self._lives: list[Life] = []
        self._gap = weather.seconds * 0.8 / max(1, weather.runs // 2)
        self._closes = self._chance.random() < 0.5
        self.flavour = self._chance.choice(["plain", "async", "mixed"])
        self.client = self._chance.choice(["plain", "async"])
        self.workers = self._chance.randint(1, 3)

    def rage(self) -> Outcome:
        """Live through it, and judge."""
        os.environ[ledger.FOLDER] = str(self._folder)
        plan = Plan(random.Random(self._chance.random()), mean=100_000, commits=12)
        with contextlib.ExitStack() as stack:
            if self._server_url is None:
                self._url = url = f"sqlite:///{self._folder}/runs.sqlite"
            else:
                self._url = stack.enter_context(fresh_database(self._server_url))
                url = stack.enter_context(proxied(self._url, plan))
            with DurableSwarm(database=self._url) as swarm:
                swarm.runs()
            self._env = {
                ledger.FOLDER: str(self._folder), "NEMESIS_URL": url, "NEMESIS_FLAVOUR": self.flavour,
                "NEMESIS_CLIENT": self.client, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            }  # fmt: skip
            hands = [
                self._life(f"person{n}", people.person, n, url, self._tasks, self._gap, self._weather.seed + n)
                for n in range(3)
            ]
            stack.callback(self._end, hands)
            for kind in ["program", *["worker"] * self.workers]:
                self._start(kind)
            self._have_faults(plan)
            self._calm(plan)
            self._judge(hands)
        self.outcome.faults["connections cut"] = plan.cuts.total()
        return self.outcome

    def _life(self, name: str, work: object, *args: object) -> Life:
        self._started += 1
        log = self._folder / f"log-{self._started:03}-{name}"
        return Life(self._context, name, log, self._env, work, *args)  # type: ignore[arg-type]

    def _start(self, kind: str) -> None:
        url = self._env["NEMESIS_URL"]
        if kind == "worker":
            self._lives.append(self._life(kind, lives.worker, url))
        else:
            mine = [task for task in self._tasks if task.way]
            self._lives.append(self._life(kind, lives.program, mine, self._gap, self._closes))

    def _end(self, hands: list[Life]) -> None:
        for life in [*self._lives, *hands]:
            life.end()

    def _have_faults(self, plan: Plan) -> None:
        """Have faults until the time is over, at least one; processes that ended are replaced."""
        until = time.monotonic() + self._weather.seconds
        calm_lines, next_fault = 0.0, time.monotonic() + 1
        while time.monotonic() < until or not self.outcome.faults:
            time.sleep(0.05)
            now = time.monotonic()
            plan.cutting = now < calm_lines
            self._tend(now)
            if now >= next_fault:
                next_fault = now + self._chance.expovariate(1 / self._weather.gap)
                kind = self._chance.choice(self._weather.faults)
                if kind == "cut":
                    calm_lines = now + self._chance.uniform(0.5, 4)
                    self._note(kind)
                elif kind == "restart":
                    self._restart()
                else:
                    self._strike(kind, now)

    def _restart(self) -> None:
        if self._crash is not None:
            self._note("restart")
            self._crash(self._chance.uniform(0, 1))

    def _note(self, fault: str, pid: int = 0) -> None:
        self.outcome.faults[fault] += 1
        ledger.write("fault", fault=fault, victim=pid)

    def _strike(self, kind: str, now: float) -> None:
        victims = [life for life in self._lives if life.lives and life.wakes is None and life.asked is None]
        if kind == "int":
            victims = [life for life in victims if life.listens]
        if not victims:
            return
        victim = self._chance.choice(victims)
        self._note(kind, victim.pid)
        if kind == "stop":
            short, long = min(4.0, self._weather.longest), self._weather.longest
            victim.wakes = now + self._chance.choice(
                [self._chance.uniform(0.1, short), self._chance.uniform(long / 2, long)]
            )
        elif kind != "kill":
            victim.asked = now
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT}[kind]
        victim.send(number)

    def _tend(self, now: float) -> None:
        """Wake who has stood still for long enough, and replace who has ended."""
        # The stopped process may hold the lock of a SQLite file, and nobody ends a write without it.
        blocked = self._server_url is None and any(life.wakes is not None for life in self._lives)
        for life in list(self._lives):
            if blocked and life.asked is not None:
                life.asked = now
            if life.wakes is not None and life.wakes <= now:
                life.wakes = None
                ledger.write("wake", victim=life.pid)
                life.send(signal.SIGCONT)
            if life.asked is not None and life.lives and now > life.asked + TO_END:
                self._say_hanging(life, "was asked to end")
                life.end()
            if not life.lives:
                self._lives.remove(life)
                if life.kind == "worker" or life.code != 0 or life.asked is not None:
                    self._due.append((now + self._chance.uniform(0, 1.5), life.kind))
        for due in [due for due in self._due if due[0] <= now]:
            self._due.remove(due)
            self._start(due[1])

    def _say_hanging(self, life: Life, why: str) -> None:
        """Have a process that hangs write down where its threads are, and note it."""
        life.send(signal.SIGUSR1)
        time.sleep(0.5)
        self.outcome.wrong.append(f"hangs: {life.kind} {life.pid} {why} and has not ended; see {life.log}")

    def _calm(self, plan: Plan) -> None:
        """Let the last stopped process wake, start all that are missing, and tell people that it is over."""
        while any(life.wakes is not None for life in self._lives) or self._due:
            time.sleep(0.05)
            self._tend(time.monotonic())
        plan.cutting = False
        ledger.write("calm")
        (self._folder / people.CALM).touch()

    def _judge(self, hands: list[Life]) -> None:
        """Wait until all runs have ended, or until nothing has happened for as long as patience lasts, and judge."""
        began = time.monotonic()
        with DurableSwarm(database=self._url) as swarm:
            left = self._wait(lambda: audit.standing(swarm, [task.id for task in self._tasks]))
            self.outcome.slowest = time.monotonic() - began
            self.outcome.wrong += [f"stands: {account}" for account in audit.accounts(swarm, left)]
            callers = [] if left else self._wait(lambda: [life for life in self._lives if life.kind == "program"])
            for life in self._lives if left else callers:
                self._say_hanging(life, "has runs that stand or callers of runs that are done,")
            for hand in hands:
                if not hand.lives:
                    self.outcome.wrong.append(f"hangs: {hand.kind} has ended with {hand.code}; see {hand.log}")
            self._end(hands)
            judge = audit.Auditor(swarm, self._folder, self._tasks, left)
            self.outcome.wrong += judge.wrong()
            self.outcome.figures.update(judge.figures)

    def _wait(self, left: Callable[[], list[T]]) -> list[T]:
        """Wait until nothing is left; return what is, once nothing has happened for 30 s, or 300 s are over."""
        began = time.monotonic()
        while found := left():
            now = time.monotonic()
            self._tend(now)
            if now - max(began, audit.last_progress(self._folder)) > PATIENCE or now - began > 10 * PATIENCE:
                return found
            time.sleep(0.3)
        return []
