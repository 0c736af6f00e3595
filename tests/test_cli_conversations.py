"""`durable-swarm sessions` and `session`: conversations as the command line shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.cli.app import main
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.testing import ScriptedModel


@pytest.fixture
def swarm() -> Iterator[DurableSwarm]:
    """A swarm on the default database with two sessions."""
    with DurableSwarm(ScriptedModel(lambda request: f"re: {request['messages'][-1]['content']}")) as swarm:
        session = swarm.session("visitor-1", Agent(name="CliSession"), context_variables={"city": "Rome"})
        session.run("Hello")
        session.run("Bye", run_id="second")
        swarm.session("visitor-2", Agent(name="CliOther")).run("Hi")
        yield swarm


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Give what a command prints as JSON."""
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_sessions_are_listed(swarm: DurableSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has every session with its agent and the number of its runs, the latest change first."""
    found = shown(capsys, "sessions")
    assert [(one["id"], one["status"], one["agent"], one["runs"], one["waiting"]) for one in found] == [
        ("visitor-2", "idle", "CliOther", 1, 0),
        ("visitor-1", "idle", "CliSession", 2, 0),
    ]
    assert main(["sessions", "--agent", "CliOther"]) == 0
    out = capsys.readouterr().out
    assert "visitor-2" in out
    assert "visitor-1" not in out


def test_a_session_is_shown(swarm: DurableSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    """One session is shown with its conversation and its runs; a prefix of its id is enough if it fits no other."""
    detail = shown(capsys, "session", "visitor-1")
    assert [message["content"] for message in detail["messages"]] == ["Hello", "re: Hello", "Bye", "re: Bye"]
    assert (detail["context_variables"], detail["usage"]["requests"]) == ({"city": "Rome"}, 2)
    assert [(run["number"], run["session"]) for run in detail["all_runs"]] == [(1, "visitor-1"), (2, "visitor-1")]
    assert main(["session", "visitor-2"]) == 0
    assert "CliOther: re: Hi" in capsys.readouterr().out
    assert main(["session", "visitor"]) == 2
    assert "visitor-1" in capsys.readouterr().err
    assert main(["session", "nobody"]) == 1
    assert "durable-swarm sessions" in capsys.readouterr().err


def test_a_run_shows_its_session(swarm: DurableSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` and `runs --json` have the session of a run, and its number in it."""
    assert (shown(capsys, "show", "second")["session"], shown(capsys, "show", "second")["number"]) == ("visitor-1", 2)
    assert {run["id"]: run["number"] for run in shown(capsys, "runs")}["second"] == 2
    assert main(["show", "second"]) == 0
    assert "visitor-1, number 2" in capsys.readouterr().out


def test_an_encrypted_session_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the keys a session is listed, and says why its conversation cannot be read."""
    with DurableSwarm(ScriptedModel(["Secret."]), codec=EncryptionCodec(new_key())) as swarm:
        swarm.session("sealed", Agent(name="CliSealed")).run("Hello")
    assert [one["id"] for one in shown(capsys, "sessions")] == ["sealed"]
    assert main(["session", "sealed"]) == 0
    assert "(encrypted)" in capsys.readouterr().out
    assert main(["sessions", "--database", "sqlite:///none.sqlite"]) == 1
