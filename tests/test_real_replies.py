"""What only real models do is told on every screen: each row of `REAL_REPLIES`, through every way to look at a run."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Response, Swarm, run_demo_loop
from durable_swarm.cli import main
from durable_swarm.demos.refund import print_transcript
from durable_swarm.testing import REAL_REPLIES, RealReply, ScriptedModel, replay

ROWS = pytest.mark.parametrize("row", REAL_REPLIES, ids=lambda row: row.kind)
LOOPED = pytest.mark.parametrize(
    "row", [row for row in REAL_REPLIES if row.ended_by != "max_turns"], ids=lambda row: row.kind
)
ASKED = [{"role": "user", "content": "Refund order A."}]


def clerk() -> Agent:
    """Make an agent with the tool that the scripts call."""

    def refund(order: str, amount: int = 100) -> str:
        return f"Refunded {amount} for {order}."

    return Agent(name="Clerk", functions=[refund])


def ran(row: RealReply, swarm: Any, face: str) -> Response:
    """Run a row's script through one face."""
    given: dict[str, Any] = {"max_turns": row.max_turns, "run_id": "real"}
    if face == "run":
        response: Response = swarm.run(clerk(), ASKED, **given)
        return response
    if face == "run_async":
        return asyncio.run(swarm.run_async(clerk(), ASKED, **given))
    *_, last = swarm.run(clerk(), ASKED, stream=True, **given)
    streamed: Response = last["response"]
    return streamed


@ROWS
@pytest.mark.parametrize("face", ["run", "run_async", "stream"])
def test_the_response_says_it(row: RealReply, face: str) -> None:
    """Both swarms, whole and streamed, end the run alike, and the response says what ended it."""
    with Swarm(ScriptedModel(row.replies)) as memory, DurableSwarm(ScriptedModel(row.replies)) as durable:
        ends = [ran(row, memory, face), ran(row, durable, face)]
    assert [end.ended_by for end in ends] == [row.ended_by] * 2
    assert [message["content"] for message in ends[0].messages] == [message["content"] for message in ends[1].messages]


@ROWS
def test_the_command_line_tells_it(row: RealReply, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` and `watch` tell it, and `runs` names every end that is no answer; a replay differs in nothing."""
    with DurableSwarm(ScriptedModel(row.replies)) as swarm:
        ran(row, swarm, "run")
        assert replay("real", clerk()).same
        assert replay("real", clerk(), ScriptedModel(row.replies)).same
    screens = {}
    for command in ("show", "watch", "runs"):
        main([command, *([] if command == "runs" else ["real"])])
        screens[command] = capsys.readouterr().out
    assert row.tells in screens["show"]
    if row.tells != "same call as":  # Events tell calls as they come; the steps count them.
        assert row.tells in screens["watch"]
    if row.ended_by != "answer":
        assert row.tells in screens["runs"]


@LOOPED
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_the_loop_tells_it(
    row: RealReply, durable: bool, stream: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run_demo_loop` tells it in the conversation, whole and streamed, durable or not."""
    monkeypatch.setattr("sys.stdin", io.StringIO("Refund order A.\n"))
    run_demo_loop(clerk(), stream=stream, client=ScriptedModel(row.replies), durable=durable)
    assert row.tells in capsys.readouterr().out


@LOOPED
def test_the_transcript_tells_it(row: RealReply, capsys: pytest.CaptureFixture[str]) -> None:
    """The transcript of the demos tells what it can tell of single messages."""
    response = Swarm(ScriptedModel(row.replies)).run(clerk(), ASKED)
    print_transcript([*ASKED, *response.messages])
    if row.ended_by == "answer" and row.tells != "written as text":
        assert row.tells in " ".join(capsys.readouterr().out.split())


def test_the_table_is_whole(tmp_path: Path) -> None:
    """Every kind is there once, and every script is one that a scripted model takes."""
    assert len({row.kind for row in REAL_REPLIES}) == len(REAL_REPLIES)
    for row in REAL_REPLIES:
        ScriptedModel(row.replies)
