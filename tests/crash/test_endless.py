"""A crash does not give a loop of agents a new start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.boundaries import effect
from tests.crash.lives import Lives
from tests.crash.matrix import read_ledger

QUESTION = [{"role": "user", "content": "Please."}]
LIMIT, RUN = 12, "run-loop"


def loop(url: str) -> tuple[int, str, int]:
    """A program with agents that hand over to each other for ever; gives the messages, the state and the last agent."""

    def to_pong() -> Agent:
        effect("pong")
        return pong

    def to_ping() -> Agent:
        effect("ping")
        return ping

    ping, pong = Agent(name="Ping", functions=[to_pong]), Agent(name="Pong", functions=[to_ping])

    def reply(request: dict[str, Any]) -> Any:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        return [{"name": request["tools"][0]["function"]["name"], "arguments": {}, "id": f"t{turn}"}]

    with DurableSwarm(ScriptedModel(reply), database=url) as swarm:
        response = swarm.run(ping, QUESTION, max_turns=LIMIT, run_id=RUN)
        return len(response.messages), swarm.get(RUN).status, int(response.agent is ping)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", [2, 5, 9, 14])
def test_the_limit_is_not_reset_by_a_crash(boundary: int, lives: Lives, tmp_path: Path) -> None:
    """Killed twice on the way, the loop ends after as many messages as without, and repeats two handoffs at most."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    assert lives.live(loop, url, ledger=ledger, at=KillPoint(boundary, "before")).killed
    assert lives.live(loop, url, ledger=ledger, at=KillPoint(6, "after")).killed
    assert lives.live(loop, url, ledger=ledger).value == (LIMIT, "done", 1)
    made = read_ledger(ledger, RUN)
    assert len({made.key for made in made}) == LIMIT // 2
    assert len(made) <= LIMIT // 2 + 2
