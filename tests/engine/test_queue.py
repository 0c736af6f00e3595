"""The queue: who takes what from it, in which order and how much at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunConflict, agents, ask_human, step, tool
from durable_swarm.engine.backend import queues, steps
from durable_swarm.engine.execution.swarms import QueueLimits
from durable_swarm.engine.processes import here, worker
from durable_swarm.engine.processes.recovery import Recovery
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.storage.messages import Messages
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user, wait_until


class Desk:
    """An agent whose tool notes who comes, and how many are there at once."""

    def __init__(self, seconds: float = 0.0, patience: float = 0.0) -> None:
        """Have each visit take so many seconds, and wait before for a second visitor, so long at most."""
        self.patience = patience
        self.seconds, self.came, self.most, self._there = seconds, list[tuple[str, float]](), 0, 0
        self._lock = threading.Lock()
        self.agent = Agent(name=unique(), functions=[self.visit])
        self.model = ScriptedModel(
            lambda request: (
                "Done." if request["messages"][-1]["role"] == "tool" else [("visit", {"who": _said(request)})]
            ),
            strict=False,
        )

    def visit(self, who: str) -> str:
        """Come in."""
        with self._lock:
            self.came.append((who, time.monotonic()))
            self._there += 1
            self.most = max(self.most, self._there)
        end = time.monotonic() + self.patience
        while self.most < 2 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.seconds)
        with self._lock:
            self._there -= 1
        return who


def _said(request: Any) -> str:
    return str(request["messages"][-1]["content"])


def queued(desk: Desk, url: str, *names: str, **options: Any) -> None:
    """Queue a run for each name, in a program without a model."""
    with DurableSwarm(database=url) as swarm:
        for name in names:
            swarm.enqueue(desk.agent.name, user(name), run_id=name, **options)


def served(make: Make, desk: Desk, *names: str, **limits: Any) -> DurableSwarm:
    """Serve the queue until these runs have ended."""
    swarm = make(desk.model)
    swarm.serve(**limits)
    for name in names:
        assert swarm.get(name).result(PATIENCE).messages[1]["content"] == name
    return swarm


def test_the_lowest_priority_comes_first(make_anywhere: Make, database_url: str) -> None:
    """Of the runs that wait, those of the lowest priority begin first, and of those the oldest."""
    desk = Desk()
    queued(desk, database_url, "c", "d", priority=5)
    queued(desk, database_url, "a", "b")
    served(make_anywhere, desk, "a", "b", "c", "d", concurrency=1)
    assert [who for who, _ in desk.came] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("limits", [{"concurrency": 2}, {"concurrency": 9, "queue_concurrency": 2}])
def test_no_more_at_once(limits: dict[str, int], make_anywhere: Make, database_url: str) -> None:
    """A worker executes no more runs at once than it may, and all workers of a queue no more than the queue may."""
    desk, names = Desk(0.1, PATIENCE), [str(number) for number in range(6)]
    queued(desk, database_url, *names)
    served(make_anywhere, desk, *names, **limits)
    assert desk.most == 2


def test_no_more_in_a_time(make_anywhere: Make, database_url: str) -> None:
    """No more runs begin within the time of a rate than it says."""
    desk, names = Desk(), [str(number) for number in range(5)]
    queued(desk, database_url, *names)
    served(make_anywhere, desk, *names, rate=(2, 1.0))
    begun = sorted(at for at, name in rows(database_url, "started_at_epoch_ms, name") if name == records_names.RUN)
    assert begun[4] - begun[0] > 1500


def test_the_same_run_is_queued_once(make: Make, url: str) -> None:
    """The id of a run that is there gives that run, whatever became of it; asked otherwise it is a conflict."""
    desk = Desk()
    queued(desk, url, "a")
    swarm = make(desk.model)
    swarm.serve()
    assert swarm.start(desk.agent, user("a"), run_id="a", queue=True).result(PATIENCE).run_id == "a"
    assert swarm.enqueue(desk.agent.name, user("a"), run_id="a").status == "done"
    with pytest.raises(RunConflict):
        swarm.enqueue(desk.agent.name, user("b"), run_id="a")
    assert len(desk.came) == 1


def test_on_the_event_loop(make: Make, url: str) -> None:
    """The twins to await queue alike."""
    desk = Desk()

    async def main() -> list[str]:
        async with asyncio.timeout(PATIENCE):
            first = await swarm.enqueue_async(desk.agent.name, user("a"), run_id="a")
            second = await swarm.start_async(desk.agent, user("b"), run_id="b", queue=True)
            for run in (first, second):
                await run.result_async()
            return [run.status for run in (first, second)]

    swarm = make(desk.model)
    swarm.serve()
    assert asyncio.run(main()) == ["done", "done"]


def test_a_tool_queues_once(make: Make) -> None:
    """A run that a tool queues is the same run in every life of the tool."""
    desk = Desk()

    def delegate() -> str:
        return swarm.start(desk.agent, user("a"), queue=True).id

    boss = Agent(name=unique("Boss"), functions=[delegate])
    swarm = make(ScriptedModel([["delegate"], "Done."]))
    child = swarm.run(boss, user(), run_id="r").messages[1]["content"]
    assert child == "r/0.0/0"
    assert swarm.get(child).status == "queued"


def test_a_queued_run_is_cancelled_and_resumed(make: Make, url: str) -> None:
    """Cancelled before a worker takes it, a run never begins; resumed, it does."""
    desk = Desk()
    queued(desk, url, "a")
    with DurableSwarm(database=url) as client:
        client.get("a").cancel()
    swarm = make(desk.model)
    swarm.serve()
    assert (swarm.get("a").status, desk.came) == ("cancelled", [])
    swarm.get("a").resume()
    swarm.get("a").result(PATIENCE)
    assert len(desk.came) == 1


def test_a_run_without_its_agent_is_offered(make: Make, url: str) -> None:
    """A worker that lacks the agent leaves the run to whichever has it: here, to itself once the agent is defined."""
    desk = Desk()
    name = unique("Later")
    with DurableSwarm(database=url) as client:
        client.enqueue(name, user("a"), run_id="a")
    swarm = make(desk.model)
    swarm.serve()
    wait_until(unclaimed)
    assert swarm.get("a").status in ("running", "queued")
    late = Agent(name=name, functions=[desk.visit])
    assert swarm.get("a").result(PATIENCE).agent is late


def test_a_run_in_its_first_life_takes_nothing_back(make_anywhere: Make) -> None:
    """A run that a worker takes from the queue is no run that goes on: its events tell no reset."""
    swarm = make_anywhere(ScriptedModel(["Hello there."], pace=0.1))
    swarm.serve()
    agent = Agent(name=unique())
    run = swarm.enqueue(agent.name, user())
    assert "text.reset" not in [event.type for event in run.events()]
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello there."


def test_a_run_that_another_has_taken_makes_no_further_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has lost a run notices before the next step, though it is the run's first life."""
    called, stands, ask = list[str](), list[str](), Messages.stand
    swarm = make(ScriptedModel([["charge"], "Done."]))
    url = str(swarm._open().url)

    def taken_before(mailbox: Messages, run_id: str) -> Any:
        stands.append(run_id)
        if len(stands) == 2:
            change(url, "UPDATE workflow_status SET owner_xid = 'other' WHERE workflow_uuid = 'r'")
        return ask(mailbox, run_id)

    @step
    def charge() -> str:
        called.append("charge")
        return "charged"

    monkeypatch.setattr(Messages, "stand", taken_before)
    agent = Agent(name=unique(), functions=[charge])
    assert swarm.start(agent, user(), run_id="r").agent == agent.name
    wait_until(lambda: len(stands) == 2)
    time.sleep(0.5)
    assert (called, len(stands)) == ([], 2)


def unclaimed() -> set[str]:
    """Give the runs that any process may take."""
    return {row.workflow_id for row in here.current().store.to_begin("")}


def test_a_run_without_its_tool_is_offered(make: Make) -> None:
    """A worker that lacks a tool leaves the run to others, and takes it back later only, or when it is told to look."""
    begun, ended = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert ended.wait(PATIENCE)
        return "worked"

    model, agent = ScriptedModel([["work"], "Done."]), Agent(name=unique(), functions=[work])
    with make(model) as swarm:
        swarm.start(agent, user(), run_id="r")
        assert begun.wait(PATIENCE)
    agent.functions.clear()
    swarm = make(model)
    swarm.serve()
    wait_until(unclaimed)
    time.sleep(1)
    assert unclaimed() == {"r"}
    assert "'work'" in str(swarm.get("r").waits_for)
    agent.functions.append(work)
    ended.set()
    assert [run.id for run in swarm.recover()] == ["r"]
    assert swarm.get("r").result(PATIENCE).messages[1]["content"] == "worked"
    assert swarm.get("r").waits_for is None


def test_what_stops_in_a_draining_worker_is_offered_at_once(make_anywhere: Make, database_url: str) -> None:
    """A worker that stops leaves what waits in it to others while it still finishes a step, and then that run, too."""
    begun, ended = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert ended.wait(PATIENCE)
        return "worked"

    def ask() -> str:
        return ask_human("Now?")

    agent = Agent(name=unique(), functions=[work, ask])
    swarm = make_anywhere(ScriptedModel(lambda request: [_said(request)], strict=False))
    swarm.serve()
    for name in ("work", "ask"):
        swarm.enqueue(agent.name, user(name), run_id=name)
    assert begun.wait(PATIENCE)
    wait_until(swarm.requests)
    # As if it had been taken over: it is under way all the same.
    mine = f"UPDATE {{schema}}workflow_status SET queue_name = '{here.current().queue}' WHERE workflow_uuid = 'work'"
    change(database_url, mine)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(swarm.drain, PATIENCE)
        try:
            wait_until(lambda: unclaimed() == {"ask"})
        finally:
            ended.set()
        assert drained.result(PATIENCE)
    assert unclaimed() == {"ask", "work"}


def test_a_run_that_waits_takes_nobodys_place(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of one place executes the next run while the first waits for a person, and ends both."""
    monkeypatch.setattr(worker, "PATIENCE", 0.3)

    def ask() -> str:
        return ask_human("Now?")

    agent = Agent(name=unique(), functions=[ask])
    model = ScriptedModel(
        lambda request: ["ask"] if _said(request) == "ask" else "Done.",
        strict=False,
    )
    swarm = make_anywhere(model)
    swarm.serve(1)
    waiting = swarm.enqueue(agent.name, user("ask"), run_id="a")
    wait_until(waiting.requests)
    swarm.enqueue(agent.name, user("b"), run_id="b").result(PATIENCE)
    assert waiting.status == "waiting"
    waiting.answer("yes")
    assert waiting.result(PATIENCE).messages[1]["content"] == "yes"


def test_runs_from_elsewhere_count(make: Make, url: str) -> None:
    """What the process executes beside the queue takes places of the queue: none is begun until one is free."""
    desk, opened = Desk(), threading.Event()

    def hold() -> str:
        assert opened.wait(PATIENCE)
        return "held"

    holder = Agent(name=unique("Holder"), functions=[hold])
    queued(desk, url, "a")
    model = ScriptedModel(
        lambda request: "Done." if request["messages"][-1]["role"] == "tool" else [_call_of(request)], strict=False
    )
    swarm = make(model)
    swarm.runs()
    run = swarm.start(holder, user("hold"), run_id="h")
    wait_until(lambda: run.status == "running" and here.current().local.executions)
    here.current().worker.serve(swarm, QueueLimits(1))
    time.sleep(1.5)
    assert desk.came == []
    opened.set()
    swarm.get("a").result(PATIENCE)
    assert [who for who, _ in desk.came] == ["a"]


def _call_of(request: Any) -> Any:
    said = _said(request)
    return "hold" if said == "hold" else ("visit", {"who": said})


def test_a_process_that_stops_takes_nothing_over(make: Make, url: str) -> None:
    """Who drains looks on no more: what is woken then goes to processes that stay."""
    swarm, name = make(ScriptedModel([])), unique()
    swarm.runs()
    with DurableSwarm(database=url) as client:
        client.enqueue(name, user(), run_id="r")
    change(url, "UPDATE workflow_status SET queue_name = 'durable_swarm:unclaimed' WHERE workflow_uuid = 'r'")
    agent = Agent(name=name)
    swarm.drain(0)
    assert here.current().take_over() == []
    assert swarm.get("r").agent == agent.name


BAD: list[Callable[[DurableSwarm], Any]] = [
    lambda swarm: swarm.start(Agent(), user(), queue="yes"),  # type: ignore[arg-type]
    lambda swarm: swarm.start(Agent(), user(), priority=1),
    lambda swarm: swarm.start(Agent(), user(), queue=True, priority=-1),
    lambda swarm: swarm.enqueue(Agent(), user()),  # type: ignore[arg-type]
    lambda swarm: swarm.enqueue("", user()),
    lambda swarm: swarm.enqueue("Clerk", "Hi"),  # type: ignore[arg-type]
    lambda swarm: swarm.serve(0),
    lambda swarm: swarm.serve(1, queue_concurrency=0),
    lambda swarm: swarm.serve(1, rate=5),  # type: ignore[arg-type]
    lambda swarm: swarm.serve(1, rate=(5, 0)),
    lambda swarm: swarm.drain(-1),
    lambda swarm: (swarm.runs(), swarm.serve()),
]


@pytest.mark.parametrize("call", BAD)
def test_what_cannot_be_queued(call: Callable[[DurableSwarm], Any], make: Make) -> None:
    """A wrong argument gets one clear error, and nothing is queued."""
    swarm = make(ScriptedModel([]))
    with pytest.raises(ConfigurationError):
        call(swarm)
    assert swarm.runs() == []


def test_a_closed_swarm_takes_nothing_from_its_queue(make: Make, url: str) -> None:
    """A swarm that served and was closed begins no more, though another is open; opened again it does."""
    desk = Desk()
    other = make(desk.model, name="other")
    other.runs()
    with make(desk.model) as swarm:
        swarm.serve()
    queued(desk, url, "a")
    time.sleep(1)
    assert [row.status for row in rows(url, "status")] == ["ENQUEUED"]
    served(make, desk, "a")


def test_a_run_that_lives_elsewhere_is_nobodys_to_leave(make: Make, url: str) -> None:
    """Of the runs that stopped here, only those that are this process's still are left to others."""
    desk = Desk()
    queued(desk, url, "mine", "others", "handed")
    make(desk.model).runs()
    engine = here.current()
    claim = "UPDATE {schema}workflow_status SET status = :status, executor_id = :name, queue_name = :queue "
    for run_id, status, name, queue in (
        ("mine", "PENDING", engine.identity.name, "q"),
        ("others", "PENDING", "another", "q"),
        ("handed", "ENQUEUED", "another", records_names.QUEUE + "another"),
    ):
        change(url, f"{claim} Where workflow_uuid = '{run_id}'", status=status, name=name, queue=queue)
        engine.local.move(run_id, "interrupted")
    engine.recovery.offer(["mine", "others", "handed"])
    assert {row[0] for row in rows(url, "workflow_uuid, queue_name") if row[1] == records_names.UNCLAIMED} == {"mine"}


def test_who_waits_in_vain_is_told_for_what(make: Make) -> None:
    """Past its timeout `result` says for what a queued run waits: in which swarm a worker is missing."""
    run = make(ScriptedModel([]), name="shop").enqueue("Clerk", user())
    with pytest.raises(TimeoutError, match=r"within 0\.1 s; it waits for a worker of a swarm named 'shop'"):
        run.result(0.1)
    with pytest.raises(TimeoutError, match="it waits for a worker of a swarm without a name"):
        asyncio.run(make(ScriptedModel([])).enqueue("Clerk", user()).result_async(0.1))


def test_a_priority_has_a_bound(make: Make) -> None:
    """What no column of the database holds is refused with the largest that one does."""
    with pytest.raises(ConfigurationError, match="priority must be a whole number from 0 up, 2147483647 at most"):
        make(ScriptedModel([])).enqueue("Clerk", user(), priority=2**31)


@pytest.mark.parametrize("kind", ["blocking", "async tool", "async model", "many at once"])
def test_where_a_queued_run_is_executed(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of its own executes a queued run in which nothing is to be awaited, with its model and its tools."""
    monkeypatch.setattr(agents, "_live", {})
    threads: list[threading.Thread] = []

    def work() -> str:
        threads.append(threading.current_thread())
        return "worked"

    async def other() -> str:
        return "not called"

    def reply(request: dict[str, Any]) -> Any:
        threads.append(threading.current_thread())
        return "Done." if request["messages"][-1]["role"] == "tool" else [("work", {})]

    agent = Agent(name=unique(), functions=[work, other] if kind == "async tool" else [work])
    model = AsyncScriptedModel(reply) if kind == "async model" else ScriptedModel(reply)
    swarm = make(model)
    swarm.serve(worker.IN_THREADS + (kind == "many at once"))
    run = swarm.start(agent, user(), queue=True)
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    of_its_own = {thread.name.startswith("durable-swarm-run") for thread in threads}
    assert (of_its_own, len(set(threads)) == 1) == ({True}, True) if kind == "blocking" else of_its_own == {False}


def test_a_thread_does_not_wait_for_who_has_its_run(make: Make, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of a run that another has taken meanwhile is free again, though the run has not ended."""
    monkeypatch.setattr(agents, "_live", {})
    ended: list[str] = []

    def work() -> str:
        change(url, "UPDATE {schema}workflow_status SET owner_xid = 'another', executor_id = 'another'")
        return "worked"

    def await_workflow_result(self: Any, workflow_id: str, *rest: Any, **named: Any) -> Any:
        try:
            return awaited(self, workflow_id, *rest, **named)
        finally:
            ended.append(workflow_id)

    awaited = steps._Database.await_workflow_result
    monkeypatch.setattr(steps._Database, "await_workflow_result", await_workflow_result)
    swarm, agent = make(ScriptedModel([["work"]])), Agent(name=unique(), functions=[step(work)])
    swarm.serve()
    swarm.start(agent, user(), run_id="r", queue=True)
    wait_until(lambda: ended == ["r"])
    wait_until(lambda: not queues.executing())
    assert (here.current().local.executions, here.current().local.of("r").state) == ({}, "elsewhere")


def test_what_waits_in_a_thread_leaves_it(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for an approval in a thread of its own leaves it, and goes on when it is answered."""
    monkeypatch.setattr(agents, "_live", {})
    monkeypatch.setattr(worker, "PATIENCE", 0.2)
    paid: list[int] = []

    @tool(approval=True)
    def pay() -> str:
        paid.append(1)
        return "paid"

    swarm, agent = make_anywhere(ScriptedModel([["pay"], "Done."])), Agent(name=unique(), functions=[pay])
    swarm.serve()
    run = swarm.start(agent, user(), queue=True)
    wait_until(lambda: run.requests() and not queues.executing())
    assert run.status == "waiting"
    run.approve()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    assert paid == [1]


def test_a_program_that_is_no_worker_leaves_queued_runs(make: Make, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queued run that a worker left before its first step is for workers, and others look for it no more."""
    looks: list[tuple[str, ...]] = []

    def take(self: Recovery, run_ids: tuple[str, ...]) -> list[str]:
        looks.append(run_ids)
        return taken(self, run_ids)

    taken = Recovery._take
    desk = Desk()
    queued(desk, url, "a")
    change(url, "UPDATE {schema}workflow_status SET queue_name = :queue", queue=records_names.UNCLAIMED)
    make(desk.model).runs()
    monkeypatch.setattr(Recovery, "_take", take)
    time.sleep(1)
    assert (looks, desk.came) == ([], [])
    assert unclaimed() == {"a"}
