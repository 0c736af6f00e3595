"""Every wrong argument of the public names gets one ConfigurationError that names it, before anything happens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound, Swarm, sleep, step, tool
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import stored_runs, user
from tests.support.patience import PATIENCE

NAN = float("nan")


def foreign(**changes: Any) -> SimpleNamespace:
    """Give an agent-like object with some attributes changed."""
    return SimpleNamespace(**{"name": "A", "model": "m", "instructions": "", "functions": []} | changes)


RUN_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "agent: None": ("agent", {"agent": None}),
    "agent: a string": ("agent", {"agent": "Agent"}),
    "agent: a class": ("agent", {"agent": Agent}),
    "agent: a dict": ("agent", {"agent": {"name": "A"}}),
    "agent: without model": ("model", {"agent": SimpleNamespace(name="A", instructions="", functions=[])}),
    "agent: name is a number": ("name", {"agent": foreign(name=5)}),
    "agent: name is None": ("name", {"agent": foreign(name=None)}),
    "agent: empty name": ("name", {"agent": foreign(name="")}),
    "agent: functions is None": ("functions", {"agent": foreign(functions=None)}),
    "agent: a function that is none": ("functions", {"agent": foreign(functions=["add"])}),
    "messages: None": ("messages", {"messages": None}),
    "messages: a string": ("messages", {"messages": "Hi"}),
    "messages: a dict": ("messages", {"messages": {"role": "user", "content": "Hi"}}),
    "messages: strings": ("messages[0]", {"messages": ["Hi"]}),
    "messages: None inside": ("messages[1]", {"messages": [*user(), None]}),
    "messages: no role": ("messages[0]", {"messages": [{"content": "Hi"}]}),
    "messages: no content": ("messages[0] is the user's", {"messages": [{"role": "user", "contnet": "Hi"}]}),
    "messages: role is a number": ("messages[0]", {"messages": [{"role": 1, "content": "Hi"}]}),
    "context_variables: a list": ("context_variables", {"context_variables": [1]}),
    "context_variables: a string": ("context_variables", {"context_variables": "x"}),
    "model_override: a number": ("model_override", {"model_override": 5}),
    "max_turns: a string": ("max_turns", {"max_turns": "3"}),
    "max_turns: None": ("max_turns", {"max_turns": None}),
    "max_turns: NaN": ("max_turns", {"max_turns": NAN}),
    "max_turns: a bool": ("max_turns", {"max_turns": True}),
    "run_id: empty": ("run_id", {"run_id": ""}),
    "run_id: blank": ("run_id", {"run_id": "  "}),
    "run_id: a number": ("run_id", {"run_id": 5}),
    "run_id: bytes": ("run_id", {"run_id": b"r"}),
    "run_id: with NUL": ("run_id", {"run_id": "a\0b"}),
    "run_id: with half a surrogate": ("run_id", {"run_id": "a\ud800b"}),
}


class Counting(ScriptedModel):
    """A model that must not be asked."""

    def __init__(self) -> None:
        super().__init__([])


@pytest.fixture(params=["Swarm", "DurableSwarm"])
def swarm(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    """A swarm of either kind, whose model is never to be asked."""
    with Swarm(Counting()) if request.param == "Swarm" else DurableSwarm(Counting(), database=url) as made:
        yield made


def assert_clear(error: ConfigurationError, name: str) -> None:
    """Check that the error names the argument and is one line of moderate length."""
    assert name in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("kind", RUN_ARGUMENTS)
def test_wrong_arguments_of_a_run(swarm: Any, url: str, kind: str) -> None:
    """A wrong argument of `run` or `start` is named at once; no model is asked and nothing is recorded."""
    name, given = RUN_ARGUMENTS[kind]

    async def call(method: str) -> None:
        result = getattr(swarm, method)(**{"agent": Agent(), "messages": user(), **given})
        if asyncio.iscoroutine(result):
            await result

    for method in ("run", "run_async", "start", "start_async"):
        if hasattr(swarm, method):
            with pytest.raises(ConfigurationError) as caught:
                asyncio.run(call(method))
            assert_clear(caught.value, name)
    assert stored_runs(url) == 0


CLIENTS: list[Any] = [
    5,
    "sk-key",
    pytest.param(object(), id="object"),
    SimpleNamespace(chat=None),
    SimpleNamespace(chat=SimpleNamespace()),
    ScriptedModel,
]


@pytest.mark.parametrize("kind", [Swarm, DurableSwarm])
@pytest.mark.parametrize("client", CLIENTS, ids=repr)
def test_wrong_clients(kind: Any, client: Any) -> None:
    """An object without `chat.completions` is no client."""
    with pytest.raises(ConfigurationError) as caught:
        kind(client)
    assert_clear(caught.value, "client")


SETTINGS: list[tuple[str, Any]] = [
    ("tool_concurrency", 0),
    ("tool_concurrency", -1),
    ("tool_concurrency", 1.5),
    ("tool_concurrency", "2"),
    ("tool_concurrency", None),
    ("tool_concurrency", True),
    ("tool_errors", "riase"),
    ("tool_errors", None),
    ("tool_errors", True),
    ("tool_errors", ["raise"]),
]
DURABLE_SETTINGS: list[tuple[str, Any]] = [
    ("database", 5),
    ("database", ""),
    ("database", b"sqlite:///x"),
    ("database", Path("x.sqlite")),
    ("name", 5),
    ("name", ""),
    ("name", "a\0"),
    ("worker_id", 5),
    ("worker_id", ""),
    ("worker_id", "\ud800"),
    ("changed_agents", "stop"),
    ("changed_agents", None),
    ("changed_agents", True),
    ("changed_agents", ["hold"]),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=repr)
@pytest.mark.parametrize("kind", [Swarm, DurableSwarm])
def test_wrong_settings(kind: Any, name: str, value: Any) -> None:
    """A wrong setting of a swarm is named when the swarm is made."""
    with pytest.raises(ConfigurationError) as caught:
        kind(Counting(), **{name: value})
    assert_clear(caught.value, name)


@pytest.mark.parametrize(("name", "value"), DURABLE_SETTINGS, ids=repr)
def test_wrong_settings_of_a_durable_swarm(tmp_path: Path, name: str, value: Any) -> None:
    """A wrong database or name is named when the swarm is made, and no file appears."""
    with pytest.raises(ConfigurationError) as caught:
        DurableSwarm(Counting(), **{name: value})
    assert_clear(caught.value, name)
    assert list(tmp_path.iterdir()) == []
    if isinstance(value, Path):
        assert "use 'sqlite:///x.sqlite'" in str(caught.value)


LISTS: list[tuple[str, Any]] = [
    ("status", "finished"),
    ("status", "DONE"),
    ("status", 5),
    ("status", ["done"]),
    ("agent", 5),
    ("agent", Agent()),
    ("limit", 0),
    ("limit", -1),
    ("limit", "5"),
    ("limit", None),
    ("limit", 1.5),
    ("limit", True),
]


@pytest.mark.parametrize(("name", "value"), LISTS, ids=lambda value: str(value)[:20])
def test_wrong_arguments_of_a_list(url: str, name: str, value: Any) -> None:
    """A wrong argument of `runs` is named."""
    with DurableSwarm(Counting(), database=url) as swarm, pytest.raises(ConfigurationError) as caught:
        swarm.runs(**{name: value})
    assert_clear(caught.value, name)


@pytest.mark.parametrize("run_id", ["", "a\0b", "\ud800", "x" * 5000])
def test_ids_that_no_run_can_have(database_url: str, run_id: str) -> None:
    """A text that can be no id of a run is the id of no run, on either database alike."""
    with DurableSwarm(Counting(), database=database_url) as swarm, pytest.raises((RunNotFound, ConfigurationError)):
        swarm.get(run_id)


@pytest.mark.parametrize("timeout", [-1, NAN, "5"])
def test_wrong_timeouts(url: str, timeout: Any) -> None:
    """A timeout is a number of seconds from 0 up."""
    with DurableSwarm(ScriptedModel(["Hello"]), database=url) as swarm:
        run = swarm.start(Agent(), user())
        with pytest.raises(ConfigurationError) as caught:
            run.result(timeout)
        assert_clear(caught.value, "timeout")

        async def later() -> None:
            await run.result_async(timeout)

        with pytest.raises(ConfigurationError) as caught:
            asyncio.run(later())
        assert_clear(caught.value, "timeout")
        assert run.result(PATIENCE).messages[-1]["content"] == "Hello"


DECORATORS: list[tuple[str, Any]] = [
    ("retries", -1),
    ("retries", 1.5),
    ("retries", "2"),
    ("retries", True),
    ("timeout", 0),
    ("timeout", -1),
    ("timeout", NAN),
    ("timeout", "5"),
    ("name", ""),
    ("name", 5),
    ("name", "two words"),
]


@pytest.mark.parametrize(("name", "value"), DECORATORS, ids=repr)
def test_wrong_settings_of_a_tool(name: str, value: Any) -> None:
    """A wrong setting of `@tool` is named where it stands, not in the middle of a run."""
    with pytest.raises(ConfigurationError) as caught:
        tool(**{name: value})(lambda: "x")
    assert_clear(caught.value, name)


STEPS = [*DECORATORS[:8], ("backoff", -1), ("backoff", NAN), ("backoff", "1"), ("name", ""), ("name", 5)]


@pytest.mark.parametrize(("name", "value"), STEPS, ids=repr)
def test_wrong_settings_of_a_step(name: str, value: Any) -> None:
    """A wrong setting of `@step` is named where it stands."""
    with pytest.raises(ConfigurationError) as caught:
        step(**{name: value})(lambda: "x")
    assert_clear(caught.value, name)


@pytest.mark.parametrize("decorator", [tool, step])
@pytest.mark.parametrize("target", [5, "add", None])
def test_decorating_what_is_no_function(decorator: Any, target: Any) -> None:
    """`@tool` and `@step` decorate functions; anything else is refused where it stands."""
    with pytest.raises(ConfigurationError) as caught:
        decorator()(target)
    assert_clear(caught.value, "function")


@pytest.mark.parametrize("seconds", [-1, NAN, "5", None])
def test_wrong_sleeps(seconds: Any, url: str) -> None:
    """What is no number of seconds is refused by `sleep`, outside a run and inside, in memory and durably."""

    def rest() -> str:
        sleep(seconds)
        return "rested"

    refusals = (ConfigurationError, ValueError, TypeError)
    with pytest.raises(refusals):
        sleep(seconds)
    with pytest.raises(refusals):
        Swarm(ScriptedModel([["rest"], "Done"])).run(Agent(functions=[rest]), user())
    with DurableSwarm(ScriptedModel([["rest"], "Done"]), database=url) as swarm, pytest.raises(refusals):
        swarm.run(Agent(functions=[rest]), user())
