"""Large values work, or end in one clear error; `benchmarks/sizes.py` measures larger ones."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from durable_swarm import Agent, ConfigurationError, DurableSwarm, NotSerializable, step
from durable_swarm.codec import MAX_DEPTH, MAX_TEXT
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import unique, user

MB = 1_000_000


def give(size: int) -> str:
    """Give a text of so many characters."""
    return "x" * size


@step
def give_as_step(size: int) -> str:
    """Give a text of so many characters."""
    return "x" * size


def keep(value: Any) -> str:
    """Take whatever the model sends."""
    return str(len(str(value)))


def agent() -> Agent:
    """Give an agent with these tools."""
    return Agent(name=unique(), functions=[give, give_as_step, keep])


def check(swarm: DurableSwarm, *args: Any, **options: Any) -> Any:
    """Run, and check that reading the run back gives the same messages."""
    response = swarm.run(agent(), *args, **options, run_id="r")
    assert swarm.get("r").messages() == response.messages
    return response


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("tool", ["give", "give_as_step"])
def test_a_large_result(make_anywhere: Make, tool: str, encrypted: bool) -> None:
    """A tool result of 5 MB is stored and read back, encrypted too."""
    codec = EncryptionCodec(new_key()) if encrypted else None
    swarm = make_anywhere(ScriptedModel([[call(tool, size=5 * MB)], "Done"]), codec=codec)
    assert len(check(swarm, user()).messages[1]["content"]) == 5 * MB


def test_a_large_context_and_message(make_anywhere: Make) -> None:
    """A context, a message and a reply of 5 MB each are stored and read back."""
    swarm = make_anywhere(ScriptedModel(["y" * 5 * MB]))
    response = check(swarm, user("x" * 5 * MB), {"text": "ü" * 5 * MB})
    assert len(response.context_variables["text"]) == len(response.messages[-1]["content"]) == 5 * MB


def test_a_long_history(make_anywhere: Make) -> None:
    """A run may be given a history of 20,000 messages."""
    swarm = make_anywhere(ScriptedModel(["Done"], strict=False))
    history = [{"role": "user", "content": f"message {number}"} for number in range(20_000)]
    assert check(swarm, history).messages[-1]["content"] == "Done"


def test_many_calls_in_a_reply(make_anywhere: Make) -> None:
    """A reply may ask for 200 tool calls, of either kind."""
    calls = [call("give", size=1), call("give_as_step", size=2)] * 100
    swarm = make_anywhere(ScriptedModel([calls, "Done"]))
    assert [message["content"] for message in check(swarm, user()).messages[1:-1]] == ["x", "xx"] * 100


@pytest.mark.parametrize("depth", [50, 5_000, 200_000])
def test_deep_arguments(make: Make, depth: int) -> None:
    """Arguments nested deeper than Python reads them are the model's mistake, of which it is told."""
    deep = "[" * depth + "]" * depth
    swarm = make(ScriptedModel([[("keep", f'{{"value": {deep}}}')], "Done"]))
    told = check(swarm, user()).messages[1]["content"]
    assert told == str(2 * depth) or told.startswith("Error: ")


def nested(depth: int) -> Any:
    """Give lists inside lists."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_deep_context(make: Make) -> None:
    """A context is nested as deep as the limit, and what is deeper is refused before anything runs."""
    swarm = make(ScriptedModel(["Done"]))
    assert check(swarm, user(), {"deep": nested(MAX_DEPTH)}).context_variables == {"deep": nested(MAX_DEPTH)}
    with pytest.raises(NotSerializable, match=r"context_variables\['deep'\].*nested deeper than 100") as caught:
        swarm.run(agent(), user(), {"deep": nested(MAX_DEPTH + 1)})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [str, bytes])
def test_a_text_that_no_database_takes(make: Make, kind: Any) -> None:
    """A text or bytes beyond the limit are refused at once, by their path, with what to do."""
    value = "x" * (MAX_TEXT + 1) if kind is str else bytes(MAX_TEXT + 1)
    with pytest.raises(NotSerializable, match=r"context_variables\['file'\] is 200,000,001 .* its name in the run"):
        make(ScriptedModel([])).run(agent(), user(), {"file": value})


def test_a_result_that_no_database_takes(make: Make) -> None:
    """A tool that gives more than can be stored ends its run with that error; the process stays fit."""
    swarm = make(ScriptedModel([[call("give", size=MAX_TEXT + 1)], "Done"]))
    with pytest.raises(NotSerializable, match="at most 200,000,000 are stored in one value"):
        swarm.run(agent(), user(), run_id="r")
    assert swarm.get("r").status == "failed"


@pytest.fixture
def small_rows() -> Iterator[None]:
    """SQLite with rows of at most a megabyte, in place of its gigabyte."""

    def limit(connection: Any, _record: Any) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MB)

    event.listen(sqlalchemy.Engine, "connect", limit)
    yield
    event.remove(sqlalchemy.Engine, "connect", limit)


@pytest.mark.usefixtures("small_rows")
@pytest.mark.parametrize("tool", ["give", "give_as_step"])
def test_a_result_beyond_the_row(make: Make, tool: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the database itself refuses a value, the run waits with one clear error that shows none of the data."""
    swarm = make(ScriptedModel([[call(tool, size=2 * MB)], "Done"]))
    with pytest.raises(
        ConfigurationError, match="One value is larger than the database stores: keep it elsewhere"
    ) as caught:
        swarm.run(agent(), user(), run_id="r")
    assert "xxxx" not in str(caught.value) + caplog.text
    assert swarm.get("r").status == "running"
    assert swarm.run(agent(), user(), run_id="s", max_turns=0).messages == []


@pytest.mark.usefixtures("small_rows")
def test_a_message_beyond_the_row(make: Make) -> None:
    """A start that the database refuses raises the same, and leaves no run behind."""
    swarm = make(ScriptedModel(["Done"]))
    with pytest.raises(ConfigurationError, match="One value is larger than the database stores"):
        swarm.run(agent(), user("x" * 2 * MB), run_id="r")
    assert swarm.runs() == []


def test_a_plain_json_of_the_same_size(make: Make) -> None:
    """A million small values in the context work as one large one does."""
    context = {"numbers": list(range(200_000)), "names": [{"name": str(number)} for number in range(50_000)]}
    response = check(make(ScriptedModel(["Done"])), user(), json.loads(json.dumps(context)))
    assert response.context_variables == context
