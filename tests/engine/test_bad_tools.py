"""Tools that raise or return anything at all: the same before and after a crash, and each effect once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from durable_swarm import Agent, DurableSwarm, NotSerializable, Result, RunFailed, step
from durable_swarm.models.wire import to_wire
from durable_swarm.testing import ScriptedModel, check_request
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, unique, user


class Mute(Exception):
    """An exception that cannot be made a text."""

    def __str__(self) -> str:
        raise ValueError("no words")


class Strict(Exception):
    """An exception that cannot be made anew from its arguments."""

    def __init__(self, *, code: int, lock: Any) -> None:
        super().__init__(f"code {code}")
        self.lock = lock


def recursion() -> None:
    """Call itself for ever."""
    recursion()


def raising(error: BaseException) -> Callable[[], None]:
    """Give a function that raises the error."""

    def throw() -> None:
        raise error

    return throw


RAISES: dict[str, tuple[Callable[[], None], type[BaseException], str]] = {
    "plain": (raising(Exception("plain")), Exception, "plain"),
    "empty": (raising(ValueError()), ValueError, ""),
    "NUL and surrogate": (raising(LookupError("a\0b\ud800")), LookupError, "a\0b\ud800"),
    "large": (raising(ValueError("x" * 1_000_000)), ValueError, "x" * 1_000_000),
    "cancelled": (raising(asyncio.CancelledError("by itself")), asyncio.CancelledError, "by itself"),
    "exit": (raising(SystemExit(3)), SystemExit, "3"),
    "recursion": (recursion, RecursionError, "maximum recursion depth exceeded"),
    "memory": (raising(MemoryError()), MemoryError, ""),
    "without text": (raising(Mute()), Mute, "<Mute without text>"),
    "group": (
        raising(ExceptionGroup("two", [ValueError("a"), OSError("b")])),
        ExceptionGroup,
        "two (2 sub-exceptions)",
    ),
    "not to be rebuilt": (raising(Strict(code=7, lock=threading.Lock())), Strict, "code 7"),
    # Python itself makes a StopIteration that leaves a coroutine a RuntimeError.
    "stop iteration": (raising(StopIteration("stop")), RuntimeError, "coroutine raised StopIteration"),
    "stop async iteration": (raising(StopAsyncIteration("stop")), StopAsyncIteration, "stop"),
    "timeout": (raising(TimeoutError("late")), TimeoutError, "late"),
}


def tools_of(shape: str, body: Callable[[], Any]) -> tuple[list[int], Callable[..., Any]]:
    """Give a tool of this shape around a body, and the list of its effects."""
    effects: list[int] = []

    def act() -> Any:
        effects.append(1)
        return body()

    async def act_async() -> Any:
        effects.append(1)
        return body()

    act_async.__name__ = "act"
    shapes = {"plain": act, "async": act_async, "step": step(act), "async step": step(act_async)}
    return effects, shapes[shape]


SHAPES = ["plain", "async", "step", "async step"]


FEW = ["NUL and surrogate", "cancelled", "without text", "group"]
CASES = [("plain", kind) for kind in RAISES] + [(shape, kind) for shape in SHAPES[1:] for kind in FEW]


@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_whatever_a_tool_raises(make: Make, shape: str, kind: str) -> None:
    """What a tool raises ends the run as it is; later it is RunFailed with its type and text; the effect is one."""
    body, expected, text = RAISES[kind]
    effects, act = tools_of(shape, body)
    agent = Agent(name=unique(), functions=[act])
    swarm = make(ScriptedModel([["act"]]))
    with pytest.raises(expected):
        swarm.run(agent, user(), run_id="r")
    run = swarm.get("r")
    assert run.status == "failed"
    check_request({"model": "m", "messages": [to_wire(message) for message in user() + run.messages()]})
    swarm.close()
    with pytest.raises(RunFailed) as later:
        swarm.run(agent, user(), run_id="r")
    assert later.value.error_type.rpartition(".")[2] == expected.__name__
    assert later.value.error_message.startswith(text)
    assert "\n" not in str(later.value).replace(text, "")
    assert effects == [1]


@pytest.mark.parametrize("kind", ["plain", "cancelled", "exit", "without text", "stop iteration", "timeout"])
def test_whatever_a_tool_raises_on_an_event_loop(make: Make, kind: str) -> None:
    """On an event loop the same comes out of `run_async`, and the loop is none the worse for it."""
    body, expected, _ = RAISES[kind]
    effects, act = tools_of("plain", body)
    swarm = make(ScriptedModel([["act"], "Hello"]))

    async def main() -> str:
        with pytest.raises(expected):
            await swarm.run_async(Agent(name=unique(), functions=[act]), user(), run_id="r")
        response = await swarm.run_async(Agent(), user())
        return str(response.messages[-1]["content"])

    assert asyncio.run(main()) == "Hello"
    assert swarm.get("r").status == "failed"
    assert effects == [1]


EXIT = """
    import json, sys
    from durable_swarm import Agent, DurableSwarm, step
    from durable_swarm.testing import ScriptedModel

    async def leave() -> str:
        sys.exit(3)

    async def stay() -> str:
        return "stayed"

    found = {}
    user = [{"role": "user", "content": "Hi"}]
    agent = Agent(functions=[leave if sys.argv[1] == "plain" else step(leave), stay])
    with DurableSwarm(ScriptedModel([["leave"], ["leave", "stay"], ["stay"], "Done"])) as swarm:
        for run_id in ("alone", "beside"):
            try:
                swarm.run(agent, user, run_id=run_id)
            except SystemExit as error:
                found[run_id] = [error.code, swarm.get(run_id).status]
        found["after"] = swarm.run(agent, user).messages[-1]["content"]
        print(json.dumps(found))
"""


@pytest.mark.parametrize("shape", ["plain", "step"])
def test_exit_in_an_async_tool(shape: str) -> None:
    """SystemExit of an async tool ends its run and reaches the caller; the runs after it work as before."""
    found = Program(EXIT).run(shape)
    assert found["alone"] == [3, "failed"]
    assert found["beside"] == [3, "failed"]
    assert found["after"] == "Done"


TOLD = ["empty", "NUL and surrogate", "large", "recursion", "memory", "without text", "group", "stop iteration"]


@pytest.mark.parametrize("kind", TOLD)
def test_whatever_a_tool_raises_may_be_told(make: Make, kind: str) -> None:
    """With `tool_errors="tell"` each exception is told with type and text, the same when it is read back."""
    body, expected, text = RAISES[kind]
    effects, act = tools_of("plain", body)
    agent = Agent(name=unique(), functions=[act])
    swarm = make(ScriptedModel([["act"], "Done"]), tool_errors="tell")
    response = swarm.run(agent, user(), run_id="r")
    sent = text.replace("\ud800", "\ufffd")  # No JSON may hold half of a character.
    assert response.messages[1]["content"].startswith(f"Error: {expected.__name__}: {sent}")
    swarm.close()
    assert swarm.run(agent, user(), run_id="r").messages == response.messages
    assert effects == [1]


def cycle() -> list[Any]:
    """Give a list that contains itself."""
    value: list[Any] = [1]
    value.append(value)
    return value


class Speechless:
    """A value that cannot be made a text."""

    def __str__(self) -> str:
        raise ValueError("no words")


def generator() -> Iterator[int]:
    """Give numbers."""
    yield 1


OTHER = Agent(name=unique("Other"))

RETURNS: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "bytes": lambda: b"\x00\xff",
    "cycle": cycle,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "a\ud800b",
    "None": lambda: None,
    "empty": lambda: "",
    "five megabytes": lambda: "x" * 5_000_000,
    "exception": lambda: ValueError("as a value"),
    "class": lambda: ValueError,
    "dictionary": lambda: {"a": {1}, 2: (3,)},
    "result": lambda: Result(value="v\0", context_variables={"n": (1, {2}), "x": "\ud800"}),
    "result that is a handoff": lambda: Result(value="v", agent=OTHER, context_variables={"n": 1}),
    "agent": lambda: OTHER,
    "datetime": lambda: datetime(2024, 2, 29, tzinfo=UTC),
    "huge integer": lambda: 10**4000,
}


@pytest.mark.parametrize(("number", "kind"), list(enumerate(RETURNS)))
def test_whatever_a_tool_returns(make: Make, number: int, kind: str) -> None:
    """A tool's value of any kind is recorded once, as text or as what it stands for, and read back the same."""
    shape = SHAPES[number % len(SHAPES)]
    effects, act = tools_of(shape, RETURNS[kind])
    agent = Agent(name=unique(), functions=[act])
    swarm = make(ScriptedModel([["act"], "Done"]))
    response = swarm.run(agent, user(), {"kept": (1,)}, run_id="r")
    swarm.close()
    again = swarm.run(agent, user(), {"kept": (1,)}, run_id="r")
    assert again.messages == response.messages
    assert again.context_variables == response.context_variables
    assert again.agent is response.agent
    assert response.context_variables["kept"] == (1,)
    assert effects == [1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_without_text(make: Make, shape: str) -> None:
    """A value that cannot be made a text ends the run with TypeError, and its effect is not repeated."""
    effects, act = tools_of(shape, Speechless)
    agent = Agent(name=unique(), functions=[act])
    swarm = make(ScriptedModel([["act"]]))
    with pytest.raises(TypeError, match="Speechless"):
        swarm.run(agent, user(), run_id="r")
    swarm.close()
    with pytest.raises(RunFailed):
        swarm.run(agent, user(), run_id="r")
    assert effects == [1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_context_that_cannot_be_stored(make: Make, shape: str) -> None:
    """A tool that leaves an object in the context ends the run with NotSerializable, which names the place."""
    effects: list[int] = []

    def act(context_variables: dict[str, Any]) -> str:
        effects.append(1)
        context_variables["db"] = {"lock": threading.Lock()}
        return "done"

    async def act_async(context_variables: dict[str, Any]) -> str:
        return act(context_variables)

    act_async.__name__ = "act"
    shapes = {"plain": act, "async": act_async, "step": step(act), "async step": step(act_async)}
    agent = Agent(name=unique(), functions=[shapes[shape]])
    swarm = make(ScriptedModel([["act"]]))
    for _ in range(2):
        with pytest.raises(NotSerializable) as caught:
            swarm.run(agent, user(), run_id="r")
        assert caught.value.path == "context_variables['db']['lock']"
        swarm.close()
    assert effects == [1]


STEP_VALUES: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (1, [2, (3,)]),
    "set": lambda: {1, "a"},
    "bytes": lambda: b"\x00\xff",
    "decimal": lambda: Decimal("0.10"),
    "uuid": lambda: UUID(int=5),
    "integer keys": lambda: {1: {2: "x"}, "$type": "y"},
    "text": lambda: "a\0b\ud800",
    "infinity": lambda: float("inf"),
    "None": lambda: None,
    "huge integer": lambda: 10**5000,
    "lock": threading.Lock,
    "cycle": cycle,
    "generator": generator,
    "raises": raising(LookupError("a\0b\ud800")),
    "raises without text": raising(Mute()),
    "raises a group": raising(ExceptionGroup("two", [ValueError("a")])),
    "raises what cannot be rebuilt": raising(Strict(code=7, lock=threading.Lock())),
}
NOT_REBUILT = {"raises a group", "raises what cannot be rebuilt"}


class Lives:
    """A tool that calls a step, notes what it saw, and in its first life does not come back."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self.seen: list[str] = []
        self.effects: list[int] = []
        self.entered, self.opened = threading.Event(), threading.Event()

        @step
        def effect() -> Any:
            self.effects.append(1)
            return body()

        self._effect = effect

    def act(self) -> str:
        """Call the step."""
        try:
            value = self._effect()
            self.seen.append(f"{type(value).__name__} {hex(value) if isinstance(value, int) else repr(value)}")
        except Exception as error:
            self.seen.append(f"{type(error).__name__} {error.args!r}")
        if len(self.seen) == 1:
            self.entered.set()
            assert self.opened.wait(PATIENCE)
        return "acted"


@pytest.mark.parametrize("kind", STEP_VALUES)
def test_a_step_gives_in_its_second_life_what_it_gave_in_its_first(make: Make, kind: str) -> None:
    """Whatever a step returned or raised, the tool sees the same after a crash, and the step's effect is one."""
    lives = Lives(STEP_VALUES[kind])
    agent = Agent(name=unique(), functions=[lives.act])
    swarm: DurableSwarm = make(ScriptedModel([["act"], "Done"]))
    swarm.start(agent, user(), run_id="r")
    assert lives.entered.wait(PATIENCE)
    swarm.close()
    response = swarm.start(agent, user(), run_id="r").result(PATIENCE)
    lives.opened.set()
    assert response.messages[-1]["content"] == "Done"
    assert len(lives.seen) == 2
    if kind in NOT_REBUILT:
        assert lives.seen[1].startswith("RunFailed")
    else:
        assert lives.seen[0] == lives.seen[1]
    assert lives.effects == [1]
