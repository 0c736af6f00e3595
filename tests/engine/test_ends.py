"""What ends user code: whatever it raises is its failure, once; a signal of the engine or the process never is."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Swarm, ends, sleep_async, step, tool
from durable_swarm.engine.signals import RunHeld, engine_closed
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, rows, unique, user, wait_until


class Timeout(BaseException):
    """A class of a library that is no `Exception`, with an attribute."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class StopService(KeyboardInterrupt):
    """A library's own kind of Ctrl+C."""


class Closing(GeneratorExit):
    """A library's own kind of the end of a generator."""


class Mute(BaseException):
    """What raises something worse when it is made a text."""

    def __str__(self) -> str:
        raise StopService("no words")

    __repr__ = __str__


KINDS: dict[str, Callable[[], BaseException]] = {
    "timeout": lambda: Timeout(1.5),
    "ctrl c": lambda: StopService("stop"),
    "closing": lambda: Closing("closing"),
    "mute": Mute,
    "nested group": lambda: BaseExceptionGroup("a", [BaseExceptionGroup("b", [Timeout(1), ValueError("c")])]),
    "exit with a text": lambda: SystemExit("bye"),
}


def tools(raised: Callable[[], BaseException]) -> tuple[list[str], list[Callable[..., Any]]]:
    """Give one tool of each shape that raises this, and the list of what was entered."""
    entered: list[str] = []

    def plain() -> str:
        entered.append("plain")
        raise raised()

    async def on_loop() -> str:
        entered.append("on_loop")
        await asyncio.sleep(0)
        raise raised()

    @step
    def plain_step() -> str:
        entered.append("plain_step")
        raise raised()

    @step
    async def step_on_loop() -> str:
        entered.append("step_on_loop")
        raise raised()

    @step
    def inner() -> str:
        entered.append("with_step")
        raise raised()

    def with_step() -> str:
        return inner()

    @tool(timeout=30)
    def bounded() -> str:
        entered.append("bounded")
        raise raised()

    @tool(effect="once")
    def once() -> str:
        entered.append("once")
        raise raised()

    return entered, [plain, on_loop, plain_step, step_on_loop, with_step, bounded, once]


def raised_by(make: Callable[[], Any]) -> BaseException:
    """Give what a call raises, whatever it is; made in a thread, where Ctrl+C cannot come from a person."""
    found: list[BaseException] = []

    def call() -> None:
        try:
            make()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["run", "start", "run_async", "stream"])
def test_whatever_user_code_raises_ends_the_run_once(make: Make, way: str, kind: str) -> None:
    """A tool of any shape that raises anything at all is entered once, and its run fails with that."""
    entered, functions = tools(KINDS[kind])
    swarm = make(ScriptedModel(lambda request: [request["messages"][-1]["content"]]))
    expected = type(KINDS[kind]())
    for function in functions:
        agent = Agent(name=unique(), functions=[function])
        messages = user(function.__name__)
        found = raised_by(functools.partial(_run, swarm, way, agent, messages, function.__name__))
        # A group holds other exceptions, which no record of a step can hold.
        assert type(found) is expected or (function.__name__ == "with_step" and expected is BaseExceptionGroup)
        assert swarm.get(function.__name__).status == "failed"
    assert entered == [function.__name__ for function in functions]


def _run(swarm: DurableSwarm, way: str, agent: Agent, messages: Any, run_id: str) -> Any:
    if way == "start":
        return swarm.start(agent, messages, run_id=run_id).result()
    if way == "run_async":
        return asyncio.run(swarm.run_async(agent, messages, run_id=run_id))
    if way == "stream":
        return list(swarm.run(agent, messages, run_id=run_id, stream=True))
    return swarm.run(agent, messages, run_id=run_id)


def test_what_is_no_exception_is_told_like_one(make: Make) -> None:
    """With `tool_errors="tell"` the model is told whatever a tool raised, with and without a database."""
    for kind, raised in KINDS.items():
        entered, functions = tools(raised)
        for swarm in (make(ScriptedModel([]), tool_errors="tell"), Swarm(ScriptedModel([]), tool_errors="tell")):
            entered.clear()
            swarm.clients = type(swarm.clients)(ScriptedModel([[one.__name__ for one in functions], "Done"]))
            agent = Agent(name=unique(), functions=functions)
            response = asyncio.run(_on_other_loop(swarm, agent))
            texts = [message["content"] for message in response.messages[1:-1]]
            assert len(texts) == len(functions)
            assert all(text.startswith("Error: ") and type(raised()).__name__ in text for text in texts), (kind, texts)
            assert sorted(entered) == sorted(one.__name__ for one in functions)


async def _on_other_loop(swarm: Any, agent: Agent) -> Any:
    return await asyncio.to_thread(swarm.run, agent, user())


class Client:
    """A client that raises: when it is asked, or in the middle of its stream; plain or async."""

    def __init__(self, raised: Callable[[], BaseException], how: str) -> None:
        self.asked = 0
        self.chat = self.completions = self
        self._raised = raised
        self.create: Any = {"plain": self.plain, "async": self.on_loop, "stream": self.stream}[how]

    def plain(self, **_: Any) -> Any:
        """Raise at once."""
        self.asked += 1
        raise self._raised()

    async def on_loop(self, **_: Any) -> Any:
        """Raise on the event loop."""
        self.asked += 1
        raise self._raised()

    async def stream(self, **_: Any) -> Any:
        """Raise when the stream is read."""
        self.asked += 1
        return self

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        raise self._raised()


@pytest.mark.parametrize("how", ["plain", "async", "stream"])
@pytest.mark.parametrize("kind", ["timeout", "ctrl c", "closing", "nested group"])
def test_a_client_that_raises_anything(make: Make, how: str, kind: str) -> None:
    """A model client that raises what is no `Exception` is asked once, and the run fails with that."""
    client = Client(KINDS[kind], how)
    swarm = make(client)
    for number, way in enumerate(["start", "stream"] if how == "stream" else ["start", "run_async", "run"], 1):
        found = raised_by(functools.partial(_run, swarm, way, Agent(name=unique()), user(), way))
        assert type(found) is type(KINDS[kind]())
        assert swarm.get(way).status == "failed"
        assert client.asked == number


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_raises_anything(make: Make, kind: str) -> None:
    """A function that makes the prompt, plain or async, fails the run with whatever it raises."""
    make_error = KINDS[kind]

    def prompt(_: Any) -> str:
        raise make_error()

    async def prompt_on_loop(_: Any) -> str:
        raise make_error()

    swarm = make(ScriptedModel([]))
    for number, instructions in enumerate([prompt, prompt_on_loop]):
        for way in ("start", "run_async"):
            agent, run_id = Agent(name=unique(), instructions=instructions), f"{way}-{number}"
            found = raised_by(functools.partial(_run, swarm, way, agent, user(), run_id))
            assert type(found) is type(KINDS[kind]())
            assert swarm.get(run_id).status == "failed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_for_approvals_that_raises_anything(make: Make, kind: str) -> None:
    """A rule that raises asks a person, whatever it raises: nothing gets through."""
    make_error = KINDS[kind]

    def rule() -> bool:
        raise make_error()

    @tool(approval=rule)
    def pay() -> str:
        return "paid"

    swarm = make(ScriptedModel([["pay"], "Done"]))
    run = swarm.start(Agent(name=unique(), functions=[pay]), user())
    wait_until(run.requests)
    assert type(KINDS[kind]()).__name__ in run.requests()[0].question
    run.approve()
    assert run.result(PATIENCE).messages[1]["content"] == "paid"


def test_a_step_raises_again_what_is_no_exception(make: Make) -> None:
    """What a step raised reaches its tool as what it was, and again from the record after the process has ended."""
    caught: list[Any] = []

    @step
    def guess() -> str:
        raise Timeout(2.5)

    def work() -> str:
        try:
            return guess()
        except Timeout as error:
            caught.append(error.seconds)
        if len(caught) == 1:
            raise ValueError("broken")
        return "mended"

    swarm = make(ScriptedModel([["work"], "Done"]))
    agent = Agent(name=unique(), functions=[work])
    with pytest.raises(ValueError, match="broken"):
        swarm.run(agent, user(), run_id="r")
    swarm.close()
    swarm.get("r").resume()
    assert swarm.get("r").result(PATIENCE).messages[1]["content"] == "mended"
    assert caught == [2.5, 2.5]


async def _cancels_its_task() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return "unreachable"


@pytest.mark.parametrize("way", ["run", "start", "run_async"])
def test_code_that_cancels_its_own_task(make: Make, way: str) -> None:
    """A tool, step or client that cancels the task it is in has failed: its run is not left to be executed again."""
    entered: list[str] = []

    async def cancels() -> str:
        entered.append("tool")
        return await _cancels_its_task()

    @step
    async def cancelling_step() -> str:
        entered.append("step")
        return await _cancels_its_task()

    swarm = make(ScriptedModel(lambda request: [request["messages"][-1]["content"]]))
    for function in (cancels, cancelling_step):
        agent = Agent(name=unique(), functions=[function])
        call = functools.partial(_run, swarm, way, agent, user(function.__name__), function.__name__)
        assert type(raised_by(call)) is asyncio.CancelledError
        assert swarm.get(function.__name__).status == "failed"
    assert entered == ["tool", "step"]


def test_runs_in_memory_raise_what_was_raised() -> None:
    """`Swarm` raises what a tool or a client raised as it is, also out of a stream, and its event loop lives on."""
    for kind, raised in KINDS.items():
        _, functions = tools(raised)
        for function in functions[:4]:
            model = ScriptedModel(lambda request: [request["messages"][-1]["content"]])
            agent = Agent(functions=[function])
            swarm, messages = Swarm(model), user(function.__name__)
            assert type(raised_by(functools.partial(swarm.run, agent, messages))) is type(raised()), kind
            stream = swarm.run(agent, messages, stream=True)
            assert type(raised_by(functools.partial(list, stream))) is type(raised()), kind
        client = Client(raised, "async")
        assert type(raised_by(functools.partial(Swarm(client).run, Agent(), user()))) is type(raised()), kind


def test_signals_pass_through_groups_of_exceptions(make: Make) -> None:
    """A tool whose task group waits when the swarm is closed has not failed: the run is left, and goes on later."""
    begun = threading.Event()

    async def waits() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep_async(0.8))
            begun.set()
        return "slept"

    swarm = make(ScriptedModel([["waits"], "Done"]))
    agent = Agent(name=unique(), functions=[waits])  # Kept, because the run continues with an agent that still exists.
    swarm.start(agent, user(), run_id="r")
    assert begun.wait(PATIENCE)
    wait_until(lambda: swarm.get("r").steps())
    swarm.close()
    assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"


def test_sorting() -> None:
    """A failure becomes an `Exception`, a signal stays one, also where it is one of a group of exceptions."""
    held = engine_closed()
    with pytest.raises(RunHeld) as met, ends.carrying():
        raise BaseExceptionGroup("all", [Timeout(1), BaseExceptionGroup("some", [held])])
    assert met.value is held
    with pytest.raises(ends.Raised) as carried, ends.carrying():
        raise Closing
    assert type(carried.value.error) is Closing
    with pytest.raises(KeyboardInterrupt), ends.carrying():
        raise KeyboardInterrupt
    with pytest.raises(ends.Raised), ends.carrying():
        raise SystemExit(3)


STOPPED = """
    import json, os, signal, sys, time
    from durable_swarm import Agent, DurableSwarm, step
    from durable_swarm.testing import ScriptedModel

    class Service:
        def stop(self, number, frame):
            sys.exit(143)

    signal.signal(signal.SIGTERM, Service().stop)

    def work() -> str:
        if len(sys.argv) > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return "worked"

    swarm = DurableSwarm(ScriptedModel([["work"], "Done"]))
    agent = Agent(name="Clerk", functions=[work if "plain" in sys.argv or len(sys.argv) == 1 else step(work)])
    print(json.dumps(swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r").messages))
"""


@pytest.mark.parametrize("shape", ["plain", "step"])
def test_a_handler_that_exits_is_no_failure_of_the_tool(shape: str) -> None:
    """`sys.exit()` in a handler of SIGTERM ends the process and leaves the run, which goes on at the next start."""
    program = Program(STOPPED)
    stopped = program.start(shape)
    stopped.communicate(timeout=PATIENCE)
    assert stopped.returncode == 143
    assert ("PENDING",) in rows("sqlite:///durable_swarm.sqlite", "status")
    again = program.start()
    out, _ = again.communicate(timeout=PATIENCE)
    assert "worked" in out


@pytest.mark.parametrize("leaves", ["returns", "raises"])
def test_a_forked_child_goes_on_with_no_run(leaves: str) -> None:
    """A child that a tool forks, and that comes out of the tool, ends there; the run goes on once, in the parent."""
    program = Program(
        f"""
        import json, os
        from durable_swarm import Agent, DurableSwarm
        from durable_swarm.testing import ScriptedModel

        parent = os.getpid()

        def fork() -> str:
            child = os.fork()
            if child == 0 and {leaves == "raises"}:
                raise OSError("no such program")
            if child != 0:
                os.waitpid(child, 0)
            return "forked"

        def pay() -> str:
            with open("paid", "a") as file:
                file.write("x")
            return "paid"

        with DurableSwarm(ScriptedModel([["fork"], ["pay"], "Done"]), tool_errors="tell") as swarm:
            response = swarm.run(Agent(functions=[fork, pay]), [{{"role": "user", "content": "Go."}}])
        assert os.getpid() == parent
        print(json.dumps({{"said": response.messages[-1]["content"], "paid": open("paid").read()}}))
        """
    )
    end = program.run()
    assert (end["said"], end["paid"]) == ("Done", "x")
    assert "tool:fork has forked" in end["stderr"]
