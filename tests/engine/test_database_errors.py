"""Errors of the database as callers get them: the package's own, whichever statement fails; who waits, waits."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Limits, Run, RunCancelled, RunFailed, ask_human
from durable_swarm.engine.api import result
from durable_swarm.engine.history import follower
from durable_swarm.errors import DurableSwarmError
from durable_swarm.service.runs import Query, open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.crash.matrix import LONG
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until
from tests.support.cuts import Cuts, cutting

pytestmark = pytest.mark.slow
MANY = 200
"""More statements than any operation has."""
EVERY = 1 if LONG else 3
"""Which statements of an operation fail: each, or in the short form every third."""
NEVER = 10**9


def ask() -> str:
    return str(ask_human("Go?"))


def fail() -> str:
    raise ValueError("not yet")


class Stage:
    """A swarm with a run that is done, and further runs on demand."""

    def __init__(self, swarm: DurableSwarm, url: str) -> None:
        self.swarm, self.url = swarm, url
        self.agent = Agent(name=unique())
        self.asking = Agent(name=unique(), functions=[ask])
        self.failing = Agent(name=unique(), functions=[fail])
        swarm.run(self.agent, user(), run_id="done")
        self.document = swarm.export("done")
        swarm.session("talk", agent=self.agent).run("Hi")

    def play(self, body: dict[str, Any]) -> Any:
        """Answer as the model: call the agent's tool, if it has one, and then end."""
        tools = body.get("tools") or []
        called = body["messages"][-1]["role"] == "tool"
        return [tools[0]["function"]["name"]] if tools and not called else "Done."

    def asks(self) -> Run:
        """Give a run with an open question."""
        run = self.swarm.start(self.asking, user())
        wait_until(run.requests)
        return run

    def failed(self) -> Run:
        """Give a run that has failed."""
        run = self.swarm.start(self.failing, user())
        with pytest.raises((ValueError, RunFailed)):
            run.result(PATIENCE)
        return run

    def queued(self) -> Run:
        """Give a run that waits for a worker that never comes."""
        return self.swarm.start(self.agent, user(), queue=True)


@pytest.fixture
def stage(make_anywhere: Make, database_url: str) -> Stage:
    stages: list[Stage] = []
    swarm = make_anywhere(ScriptedModel(lambda body: stages[0].play(body) if stages else "Done."))
    stages.append(Stage(swarm, database_url))
    return stages[0]


def everything(run: Run) -> None:
    _ = run.status, run.agent, run.created_at, run.updated_at, run.usage, run.ended_by, run.waits_for, run.parent
    _ = run.messages(), run.steps(), run.requests(all=True), run.requests(), run.children(), list(run.events())
    run.result(PATIENCE)


def sessions(stage: Stage) -> None:
    (talk,) = stage.swarm.sessions()
    _ = talk.agent, talk.context_variables, talk.usage, talk.created_at, talk.updated_at, talk.messages(), talk.runs()


async def everything_async(run: Run) -> None:
    await run.messages_async(), await run.steps_async(), await run.requests_async(), await run.children_async()
    _ = [event async for event in run.events_async()]
    await run.result_async(PATIENCE)


def by_service(stage: Stage) -> None:
    with open_runs(stage.url) as runs:
        runs.list(Query()), runs.show("done"), runs.view("done"), list(runs.events("done")), runs.inbox.list()
        runs.export("done"), runs.forget(datetime.now(UTC), dry_run=True), runs.inbox.goes_on("done")


Prepare = Callable[[Stage], Any]
Act = Callable[[Stage, Any], Any]


def nothing(_: Stage) -> None:
    """Prepare nothing."""


OPERATIONS: dict[str, tuple[Prepare, Act]] = {
    "get": (nothing, lambda stage, _: stage.swarm.get("done")),
    "runs": (nothing, lambda stage, _: stage.swarm.runs()),
    "recover": (nothing, lambda stage, _: stage.swarm.recover()),
    "requests": (nothing, lambda stage, _: stage.swarm.requests()),
    "export": (nothing, lambda stage, _: stage.swarm.export("done")),
    "import_run": (
        lambda stage: {**stage.document, "id": uuid.uuid4().hex},
        lambda stage, document: stage.swarm.import_run(document),
    ),
    "enqueue": (nothing, lambda stage, _: stage.swarm.enqueue("Nobody", user(), run_id=uuid.uuid4().hex)),
    "attach": (nothing, lambda stage, _: stage.swarm.run(stage.agent, user(), run_id="done")),
    "stream": (nothing, lambda stage, _: list(stage.swarm.run(stage.agent, user(), run_id="done", stream=True))),
    "attach_async": (
        nothing,
        lambda stage, _: asyncio.run(stage.swarm.run_async(stage.agent, user(), run_id="done")),
    ),
    "everything": (nothing, lambda stage, _: everything(stage.swarm.get("done"))),
    "everything_async": (nothing, lambda stage, _: asyncio.run(everything_async(stage.swarm.get("done")))),
    "fork": (nothing, lambda stage, _: stage.swarm.get("done").fork(0, agent="Nobody")),
    "resume": (Stage.failed, lambda _, run: run.resume()),
    "cancel": (Stage.queued, lambda _, run: run.cancel()),
    "say": (Stage.queued, lambda _, run: run.say("Hurry.")),
    "answer": (Stage.asks, lambda _, run: run.answer("yes")),
    "answer by id": (Stage.asks, lambda stage, run: stage.swarm.answer("yes", run.requests()[0].id)),
    "complete": (nothing, lambda stage, _: stage.swarm.complete(uuid.uuid4().hex, "it came")),
    "sessions": (nothing, lambda stage, _: sessions(stage)),
    "fork of a session": (nothing, lambda stage, _: stage.swarm.session("talk").fork(uuid.uuid4().hex)),
    "deletion of a session": (
        lambda stage: stage.swarm.session("talk").fork(uuid.uuid4().hex),
        lambda _, fork: fork.delete(),
    ),
    "the service": (nothing, lambda stage, _: by_service(stage)),
    "resume by the service": (Stage.failed, lambda stage, run: _in_service(stage, lambda runs: runs.resume(run.id))),
    "cancel by the service": (Stage.queued, lambda stage, run: _in_service(stage, lambda runs: runs.cancel(run.id))),
}


def _in_service(stage: Stage, act: Callable[[Any], Any]) -> None:
    with open_runs(stage.url) as runs:
        act(runs)


def _error_of(act: Callable[[], Any]) -> DurableSwarmError | None:
    try:
        act()
    except DurableSwarmError as error:
        return error
    return None


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whichever_statement_fails_the_error_is_ours(operation: str, count: int, stage: Stage) -> None:
    """Each operation works, or raises an error of this package, whichever of its statements meets the fault."""
    prepare, act = OPERATIONS[operation]
    for number in range(1, MANY, EVERY):
        given = prepare(stage)
        with cutting(number, count) as cuts:
            error = _error_of(functools.partial(act, stage, given))
        assert error is None or (type(error) is ConfigurationError and "cannot be used" in str(error)), repr(error)
        if not cuts.fell:
            break
    else:
        pytest.fail(f"more than {MANY} statements")
    assert number > 1


TEAMS: dict[str, Callable[[DurableSwarm, Agent], Any]] = {
    "as a tool": lambda _, helper: helper.as_tool("work", limits=Limits(requests=9, tool_calls=9)),
    "by run": lambda swarm, helper: _tool_that(lambda: swarm.run(helper, user())),
    "by start": lambda swarm, helper: _tool_that(lambda: swarm.start(helper, user()).result(PATIENCE)),
}


def _tool_that(act: Callable[[], Any]) -> Callable[[], str]:
    def work() -> str:
        return str(act().messages[-1]["content"])

    return work


@pytest.mark.parametrize("team", TEAMS)
def test_a_database_that_fails_under_a_run_with_children_fails_no_run(
    team: str, make_anywhere: Make, database_url: str
) -> None:
    """Whichever statements fail under a run and its child, from the limits above them on, neither ends with that."""

    def play(body: dict[str, Any]) -> Any:
        is_boss = bool(body.get("tools"))
        return (
            [call("work", **({"message": "Go."} if team == "as a tool" else {}))]
            if is_boss and (body["messages"][-1]["role"] != "tool")
            else "Done."
        )

    swarm = make_anywhere(ScriptedModel(play, strict=False))
    helper = Agent(name=unique())
    boss = Agent(name=unique(), functions=[TEAMS[team](swarm, helper)])
    limits = Limits(requests=20, tool_calls=20)
    counts = itertools.cycle((1, 2, 3))
    for number in range(1, MANY, EVERY if database_url.startswith("sqlite") else 3 * EVERY):
        run_id = uuid.uuid4().hex
        with cutting(number, next(counts)) as cuts:
            _error_of(functools.partial(swarm.run, boss, user(), run_id=run_id, limits=limits))
        assert swarm.run(boss, user(), run_id=run_id, limits=limits).messages[-1]["content"] == "Done."
        run = swarm.get(run_id)
        assert [one.status for one in (run, *run.children())] == ["done", "done"]
        assert run.spent.requests - run.spent.uncertain == 3
        if not cuts.fell:
            break
    assert number > 20


FIRST: dict[str, Callable[[DurableSwarm, str], Any]] = {
    "runs": lambda swarm, _: swarm.runs(),
    "start": lambda swarm, agent: swarm.start(Agent(name=agent), user()),
    "service": lambda swarm, _: _list_runs(str(swarm.database)),
}


def _list_runs(url: str) -> None:
    with open_runs(url) as runs:
        runs.list(Query())


@pytest.mark.parametrize("first", FIRST)
def test_whichever_statement_fails_at_first_use_the_error_is_ours(first: str, database_url: str) -> None:
    """A first use works, or raises `ConfigurationError`; a second one finds nothing half open."""
    agent, refused = unique(), 0
    # PostgreSQL has many statements here, and a swarm that fails half-way takes long to close: every tenth is tried.
    for number in range(1, MANY, 1 if database_url.startswith("sqlite") else 10):
        with DurableSwarm(ScriptedModel(lambda _: "Done."), database=database_url) as swarm:
            with cutting(number, 4) as cuts:
                error = _error_of(lambda: FIRST[first](swarm, agent))
            assert error is None or isinstance(error, ConfigurationError), repr(error)
            refused += error is not None
            swarm.runs()
        if not cuts.fell:
            break
    assert refused


def test_locks_that_cannot_be_opened_are_reported(tmp_path: Path, url: str) -> None:
    """A file of locks that cannot be opened is one clear error, for the program and for the commands."""
    (tmp_path / "runs.sqlite.lock").unlink(missing_ok=True)
    (tmp_path / "runs.sqlite.lock").mkdir()
    with DurableSwarm(ScriptedModel([]), database=url) as swarm, pytest.raises(ConfigurationError, match=r"\.lock"):
        swarm.runs()
    with pytest.raises(ConfigurationError, match=r"\.lock"):
        _list_runs(url)


async def _last(items: Any) -> None:
    async for _ in items:
        pass


WAITERS: dict[str, Callable[[Stage, Run], Any]] = {
    "result": lambda _, run: run.result(),
    "result_async": lambda _, run: asyncio.run(run.result_async()),
    "run": lambda stage, run: stage.swarm.run(stage.agent, user(), run_id=run.id),
    "events": lambda _, run: list(run.events()),
    "events_async": lambda _, run: asyncio.run(_last(run.events_async())),
    "stream": lambda stage, run: list(stage.swarm.run(stage.agent, user(), run_id=run.id, stream=True)),
    "stream_async": lambda stage, run: asyncio.run(
        _last(stage.swarm.run_async(stage.agent, user(), run_id=run.id, stream=True))
    ),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waiters look often."""
    monkeypatch.setattr(result, "_LOOK", 0.01)
    monkeypatch.setattr(follower, "LATEST", 0.02)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Threads for those who wait."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.mark.postgres
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("waiter", WAITERS)
def test_who_waits_is_told_of_no_lost_connection(
    waiter: str, make: Make, postgres_database: str, beside: ThreadPoolExecutor
) -> None:
    """Whichever statement of a waiter fails, and however often, it gets the end of the run, and nothing else."""
    stage = Stage(make(ScriptedModel(lambda _: "Done."), database=postgres_database), postgres_database)
    for number in range(1, 4):
        for count in (1, 6):
            run = stage.queued()
            with cutting(NEVER) as cuts:
                context = contextvars.copy_context()
            waiting = beside.submit(context.run, WAITERS[waiter], stage, run)
            _strike(cuts, number, count)
            run.cancel()
            if waiter.startswith("events"):
                waiting.result(PATIENCE)
            else:
                with pytest.raises(RunCancelled):
                    waiting.result(PATIENCE)


def _strike(cuts: Cuts, number: int, count: int) -> None:
    """Once the waiter waits, let some of its statements fail, and wait until it has gone on behind them."""
    wait_until(lambda: cuts.seen > 20)
    cuts.strike(number, count)
    wait_until(lambda: cuts.seen > cuts.last + 3)
