"""Codecs as people meet them: what redaction leaves, and what the command line shows with and without keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from durable_swarm import Agent, step
from durable_swarm.cli import main
from durable_swarm.encryption import new_key
from durable_swarm.redaction import Redacting
from durable_swarm.testing import ScriptedModel
from tests.engine.codecs import KEYS, SECRET, Declined, Desk, all_texts, ask, encrypted, found_in
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user

# Redaction


def test_a_masked_value_is_gone_for_the_live_run_too(make: Make, url: str) -> None:
    """With and without a crash, model and tools see the mask in place of the secret; so does everything stored."""
    seen: list[Any] = []

    def look(secret: str, context_variables: dict[str, Any]) -> str:
        """Note what the tool is given, and give the secret back."""
        seen.append((secret, dict(context_variables)))
        return f"found {SECRET}"

    def reply(request: dict[str, Any]) -> Any:
        seen.append(json.dumps(request["messages"]))
        return [("look", {"secret": SECRET})] if len(seen) < 2 else f"it is {SECRET}"

    codec = Redacting([r"sk-\w+-\d+"])
    with make(ScriptedModel(reply), codec=codec) as swarm:
        agent = Agent(name=unique(), functions=[look])
        response = swarm.run(agent, user(f"my key is {SECRET}"), {"key": [SECRET]}, run_id="r")
    assert SECRET not in str(seen)
    assert seen[1] == ("[redacted]", {"key": ["[redacted]"]})
    assert "found [redacted]" in seen[2]
    assert response.messages[-1]["content"] == "it is [redacted]"
    assert SECRET not in all_texts(url)


def test_a_fork_is_masked_too(make: Make, url: str) -> None:
    """Messages given to a fork pass through the codec, and the same fork again is the same run."""
    with make(ScriptedModel(["Hello", "again"]), codec=Redacting([r"sk-\w+-\d+"], encrypted())) as swarm:
        run = swarm.start(Agent(name=unique()), user(), run_id="r")
        run.result(PATIENCE)
        for _ in range(2):
            fork = run.fork(1, messages=user(f"my key is {SECRET}"), run_id="s")
            assert fork.result(PATIENCE).messages[-1]["content"] == "again"
        assert SECRET not in str(fork.messages()) + all_texts(url)


# The command line


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Call the command line, which must succeed, and give what it printed."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.fixture
def two_runs(make: Make) -> Desk:
    """A database with an encrypted run that is done and one that failed, `r` and `f`."""
    desk = Desk()

    def fail() -> None:
        raise Declined("canary-text")

    with make(ScriptedModel([*desk.replies(), ["fail"]]), codec=encrypted()) as swarm:
        ask(swarm, desk)
        with pytest.raises(Declined):
            swarm.run(Agent(name=unique("Third"), functions=[fail]), user(), run_id="f")
    return desk


def test_show_without_the_codec(two_runs: Desk, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without keys the command line tells a run's structure, says `(encrypted)`, and how to read more."""
    assert found_in(command(capsys, "runs", "--database", url)) == []
    for options in (["r"], ["f"], ["r", "--json"], ["f", "--json"]):
        shown = command(capsys, "show", *options, "--database", url)
        assert found_in(shown) == []
        assert "(encrypted)" in shown
        assert "DURABLE_SWARM_ENCRYPTION_KEYS" in shown
    shown = command(capsys, "show", "r", "--database", url)
    assert [name for name in (two_runs.agent.name, "double", "inner", "done") if name not in shown] == []
    assert "Declined: (encrypted)" in command(capsys, "show", "f", "--database", url)


def test_show_with_keys(
    two_runs: Desk, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the environment's keys the command line shows everything; with others it says which key is missing."""
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", ",".join(KEYS))
    shown = command(capsys, "show", "r", "--database", url)
    assert "(encrypted)" not in shown
    assert {"canary-user", "canary-text", "canary-step"} <= set(found_in(shown))
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", new_key())
    shown = command(capsys, "show", "r", "--database", url)
    assert "was encrypted with key" in shown
    assert found_in(shown) == []


def test_resume_needs_no_keys(make: Make, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Cancelling and resuming from outside work without the codec, a failed step inside a tool included."""
    broken = [True]

    @step
    def pay() -> str:
        if broken:
            raise Declined("canary-text")
        return "paid"

    def charge() -> str:
        return str(pay())

    agent = Agent(name=unique(), functions=[charge])
    with make(ScriptedModel([["charge"], "Done"]), codec=encrypted()) as swarm, pytest.raises(Declined):
        swarm.run(agent, user(), run_id="r")
    broken.clear()
    assert "continues when" in command(capsys, "resume", "r", "--database", url)
    with make(ScriptedModel([["charge"], "Done"]), codec=encrypted()) as swarm:
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"
