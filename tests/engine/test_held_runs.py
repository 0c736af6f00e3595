"""What a process cannot do for a run is never the run's failure: it leaves the run to others, or to its next start."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ModelError, current_call, sleep
from durable_swarm.engine.api import result
from durable_swarm.models.client import Clients
from durable_swarm.testing import ProviderError, ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, unique, user

REFUSED = ProviderError("wrong key", status_code=401)
FORBIDDEN = ProviderError("not yours", status_code=403)


def use(swarm: DurableSwarm, client: Any) -> None:
    """Have the swarm ask another client from now on, as a program does that was started with another key."""
    swarm.clients = Clients(client)


@pytest.mark.parametrize("refusal", [REFUSED, FORBIDDEN])
@pytest.mark.parametrize("way", ["run", "start", "run_async"])
def test_a_key_that_is_refused_leaves_no_failure(make: Make, way: str, refusal: ProviderError) -> None:
    """The first model call with a refused key raises; nothing is recorded as failed, and the next start asks again."""
    agent = Agent(name=unique())
    swarm = make(ScriptedModel([refusal, refusal]))

    def call() -> Any:
        if way == "start":
            return swarm.start(agent, user(), run_id="r").result(PATIENCE)
        if way == "run_async":
            return asyncio.run(swarm.run_async(agent, user(), run_id="r"))
        return swarm.run(agent, user(), run_id="r")

    for _ in range(2):
        with pytest.raises(ModelError) as raised:
            call()
        assert raised.value.status == refusal.status_code
    run = swarm.get("r")
    assert (run.status, swarm.runs("failed")) == ("running", [])
    assert str(refusal.status_code) in str(run.waits_for) or "ProviderError" in str(run.waits_for)
    use(swarm, ScriptedModel(["Hello"]))
    assert call().messages[-1]["content"] == "Hello"


@pytest.mark.parametrize("way", ["run", "run_async", "stream"])
def test_a_refused_run_that_nobody_can_ask_for_is_not_executed_later(make: Make, way: str) -> None:
    """Without a run_id the caller asks for a new run: the refused one is cancelled, and not executed beside it."""
    agent = Agent(name=unique())
    swarm = make(ScriptedModel([REFUSED]))
    calls = {
        "run": lambda: swarm.run(agent, user()),
        "run_async": lambda: asyncio.run(swarm.run_async(agent, user())),
        "stream": lambda: list(swarm.run(agent, user(), stream=True)),
    }
    with pytest.raises(ModelError):
        calls[way]()
    [run] = swarm.runs()
    assert run.status == "cancelled"
    swarm.close()
    assert swarm.recover() == []


def interrupted(make: Make, run_id: str = "r") -> tuple[DurableSwarm, Agent]:
    """Give a closed swarm with a run whose first turn is recorded, and whose tool was interrupted."""
    begun = threading.Event()

    def nap() -> str:
        begun.set()
        sleep(0.5)
        return "slept"

    agent = Agent(name=unique(), functions=[nap])
    swarm = make(ScriptedModel([["nap"], "Done"]))
    swarm.start(agent, user(), run_id=run_id)
    assert begun.wait(PATIENCE)
    swarm.close()
    return swarm, agent


def test_a_wrong_key_does_not_fail_what_was_taken_over(make: Make) -> None:
    """A process that continues another's run and whose key is refused leaves the run, which has not failed."""
    swarm, _agent = interrupted(make)
    good = swarm.clients
    use(swarm, ScriptedModel([["nap"], REFUSED]))
    with pytest.raises(ModelError):
        swarm.get("r").result(PATIENCE)
    assert swarm.runs("failed") == []
    swarm.clients = good
    swarm.recover()
    assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"


def test_a_key_that_worked_and_is_refused_fails_the_run(make: Make) -> None:
    """A refusal in the middle of what this process has begun is the run's failure, and `resume` repeats the call."""

    def note() -> str:
        return "noted"

    swarm = make(ScriptedModel([["note"], REFUSED, "Done"]))
    with pytest.raises(ModelError):
        swarm.run(Agent(name=unique(), functions=[note]), user(), run_id="r")
    assert swarm.get("r").status == "failed"


NO_CLIENT = {
    "no key": {"OPENAI_API_KEY": ""},
    "no certificates": {"OPENAI_API_KEY": "x", "SSL_CERT_FILE": "/nowhere/at/all.pem"},
    "unfit proxy": {"OPENAI_API_KEY": "x", "HTTPS_PROXY": "gopher://proxy:1"},
}


@pytest.mark.parametrize("lack", NO_CLIENT)
def test_a_process_that_cannot_make_its_client_takes_nothing_over(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lack: str
) -> None:
    """A program that only looks, and has no client, leaves interrupted runs as they are and says so in one line."""
    swarm, _agent = interrupted(make)
    good = swarm.clients
    for name, value in NO_CLIENT[lack].items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    use(swarm, None)
    with caplog.at_level(logging.WARNING, "durable_swarm"):
        assert swarm.recover() == []
        assert swarm.runs("failed") == []
        with pytest.raises(TimeoutError):
            swarm.get("r").result(timeout=2.5)
    assert caplog.text.count("no model client") == 1
    swarm.clients = good
    assert [run.id for run in swarm.recover()] == ["r"]
    assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"


# A stop in good order, under tools that wait for runs


class Waiters:
    """Tools that wait for a run of their own, each in another way."""

    def __init__(self, swarm: DurableSwarm, helper: Agent) -> None:
        self.swarm, self.helper = swarm, helper

    def _sub(self) -> dict[str, Any]:
        return {"agent": self.helper, "messages": user("sub"), "run_id": f"{current_call().run_id}-sub"}

    def follows_events(self) -> str:
        """Read the events of a run."""
        return [event.type for event in self.swarm.start(**self._sub()).events()][-1]

    async def follows_on_loop(self) -> str:
        """Read the events of a run on the event loop."""
        run = await self.swarm.start_async(**self._sub())
        return [event.type async for event in run.events_async()][-1]

    async def streams_on_loop(self) -> str:
        """Read the stream of a run on the event loop."""
        items = [item async for item in self.swarm.run_async(**self._sub(), stream=True)]
        return str(items[-1]["response"].messages[-1]["content"])

    def wraps(self) -> str:
        """Raise an error of its own for whatever goes wrong."""
        try:
            return str(self.swarm.run(**self._sub()).messages[-1]["content"])
        except Exception as error:
            raise LookupError("the helper does not help") from error

    def swallows(self) -> str:
        """Return whatever goes wrong as a text."""
        try:
            return str(self.swarm.start(**self._sub()).result().messages[-1]["content"])
        except Exception as error:
            return f"failed: {error}"

    def in_a_thread(self) -> str:
        """Wait in a thread that does not know in which tool it is."""
        sub = self._sub()
        with ThreadPoolExecutor(1) as pool:
            return str(
                pool.submit(lambda: list(self.swarm.run(**sub, stream=True))).result()[-1]["response"].agent.name
            )

    def with_timeout(self) -> str:
        """Wait for some time at most."""
        return str(self.swarm.start(**self._sub()).result(timeout=200).messages[-1]["content"])


WAITERS = [name for name in vars(Waiters) if not name.startswith("_")]


@pytest.mark.parametrize("how", ["close", "drain"])
@pytest.mark.parametrize("tool_errors", ["raise", "tell"])
def test_a_stop_in_good_order_fails_no_tool_that_waits_for_a_run(make: Make, how: str, tool_errors: str) -> None:
    """Whichever way a tool waits for another run: when its process stops, both are left, and continue later."""
    ticks = {name: threading.Event() for name in WAITERS}

    def tick() -> str:
        ticks[current_call().run_id.removesuffix("-sub")].set()
        sleep(0.3)
        return "t"

    def reply(request: dict[str, Any]) -> Any:
        said = next(message["content"] for message in request["messages"] if message["role"] == "user")
        turns = sum(message["role"] == "assistant" for message in request["messages"])
        if said == "sub":
            return ["tick"] if turns < 6 else "sub done"
        return "Done" if turns else [said]

    helper = Agent(name=unique("Helper"), functions=[tick])
    swarm = make(ScriptedModel(reply), tool_errors=tool_errors)
    waiters = Waiters(swarm, helper)
    boss = Agent(name=unique("Boss"), functions=[getattr(waiters, name) for name in WAITERS])
    for name in WAITERS:
        swarm.start(boss, user(name), run_id=name)
    assert all(begun.wait(PATIENCE) for begun in ticks.values())
    if how == "drain":
        assert swarm.drain(10)
    swarm.close()
    assert {run.id: run.status for run in swarm.runs() if run.status in ("failed", "done")} == {}
    for name in WAITERS:
        messages = swarm.get(name).result(PATIENCE).messages
        assert messages[-1]["content"] == "Done"
        assert "closed" not in messages[1]["content"], name


ENDING = """
    import asyncio, concurrent.futures, sys, threading, time
    from durable_swarm import Agent, DurableSwarm, sleep_async, tool
    from durable_swarm.testing import ScriptedModel

    begun = threading.Event()

    async def to_thread() -> str:
        begun.set()
        await asyncio.sleep(1)
        return await asyncio.to_thread(lambda: "worked")

    def pool() -> str:
        begun.set()
        time.sleep(1)
        with concurrent.futures.ThreadPoolExecutor() as threads:
            return threads.submit(lambda: "worked").result()

    async def naps() -> str:
        begun.set()
        await sleep_async(1)
        return "worked"

    def resolves() -> str:
        begun.set()
        async def look() -> str:
            await asyncio.sleep(1)
            await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 1)
            return "worked"
        try:
            return asyncio.run(look())
        except Exception as error:
            raise ConnectionError("no name server") from error

    name = sys.argv[1]
    swarm = DurableSwarm(ScriptedModel([[name], "Done"]))
    agent = Agent(name="Clerk", functions=[to_thread, pool, naps, resolves])
    run = lambda: swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r")
    if sys.argv[2] == "1":
        threading.Thread(target=run).start()
        begun.wait()
        sys.exit()
    print(run().messages[1]["content"])
"""


@pytest.mark.parametrize("tool", ["to_thread", "pool", "naps", "resolves"])
def test_the_end_of_the_interpreter_fails_no_tool(tool: str) -> None:
    """A tool that needs threads when the main thread has ended has not failed: the next start calls it again."""
    program = Program(ENDING)
    first = program.start(tool, "1")
    first.communicate(timeout=PATIENCE)
    connection = sqlite3.connect("durable_swarm.sqlite")
    assert set(connection.execute("SELECT status FROM workflow_status WHERE workflow_uuid = 'r'")) == {("PENDING",)}
    connection.close()
    out, err = program.start(tool, "2").communicate(timeout=PATIENCE)
    assert "worked" in out, err


def test_a_program_that_ends_does_not_wait_for_what_never_leaves_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a run is told that the program has ended, also if the run's last execution here never left."""
    run = make(ScriptedModel([])).start(Agent(name=unique()), user(), queue=True)
    executor, over = run.executor(), Future[None]()
    over.set_result(None)
    assert executor is not None
    stuck: Any = SimpleNamespace(over=over, released=False, lost=False, response=None, error=None)
    executor.local.executions[run.id] = stuck
    monkeypatch.setattr(result, "exiting", lambda: True)
    try:
        with pytest.raises(ConfigurationError, match="program has ended"):
            run.result(PATIENCE)
    finally:
        del executor.local.executions[run.id]
