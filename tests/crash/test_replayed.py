"""What is replayed after a crash is silent: whoever looks on sees a step once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, emit
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.faults import slowly
from tests.crash.following import Told, as_line
from tests.crash.lives import Lives, say
from tests.crash.scenarios import QUESTION, ask

RUN = "run-silent"


def speak(url: str, colour: str) -> tuple[list[dict[str, Any]], list[Told]]:
    """A program that prints and logs all it can; gives the dictionaries and the events of this life."""
    logging.basicConfig(level=logging.DEBUG)

    def work() -> str:
        print("tool at work")
        logging.getLogger("shop").info("tool logs")
        emit("tool emits")
        return "worked"

    def reply(request: dict[str, Any]) -> Any:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        made = {"id": "c0", "type": "function", "function": {"name": ask("work")[0], "arguments": "{}"}}
        if turn == 0:
            return {"role": "assistant", "content": "first words", "tool_calls": [made]}
        say("asked")
        return slowly(" ".join(["second", *["words"] * 30]), pace=0.01)

    swarm = DurableSwarm(ScriptedModel(reply), database=url)
    clerk = Agent(name="Silent clerk", functions=[work])
    if colour == "recovered":
        swarm.recover()
    stream = swarm.run(clerk, QUESTION, stream=True, debug=True, run_id=RUN)
    items = [item if "response" not in item else {"response": None} for item in stream]
    return items, [as_line(event) for event in swarm.get(RUN).events()]


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["attached", "recovered"])
def test_a_replayed_step_says_nothing(colour: str, lives: Lives, tmp_path: Path) -> None:
    """The second life of a run has no event, print, log line or dictionary of a step that the first has finished."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    first = lives.start(speak, url, "attached", ledger=ledger)
    assert first.hear() == "asked"
    killed = first.kill()
    assert all(word in killed.log for word in ("tool at work", "tool logs", "first words")), killed.log
    end = lives.live(speak, url, colour, ledger=ledger)
    items, events = end.value
    assert not [word for word in ("tool at work", "tool logs", "Processing tool call") if word in end.log], end.log
    # Of the model calls, the one that is made prints its request and its answer.
    assert end.log.count("Getting chat completion") == end.log.count("Received completion") == 1, end.log
    assert not [item for item in items if "first words" in str(item) or "work" in str(item.get("tool_calls"))], items
    delims = [item["delim"] for item in items if "delim" in item]
    # The reply has begun in the first life: the second is told so, and that it begins anew, or has it from the start.
    assert delims in (["start", "reset", "end"], ["start", "end"])
    told = [event["type"] for event in events]
    for kind in ("tool.started", "tool.progress", "tool.finished", "run.started", "run.finished"):
        assert told.count(kind) == 1, told
    assert told.count("turn.started") == 2
