"""A streamed program of the crash matrix, which reads its own events while it runs, and what its readers must have got.

Its replies take so long that rows of events are written while they come in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, Result, emit, errors, step
from durable_swarm.engine.database import connection, urls
from durable_swarm.engine.history.follower import RecordedEvents
from durable_swarm.engine.storage.runs import Store
from durable_swarm.models import provider_errors
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.faults import cut
from durable_swarm.types import Message
from tests.crash.boundaries import effect
from tests.crash.following import Told, as_line, differences, follow_into, read_told, wrongs_of

PACE = 0.006
"""Seconds before each word: a reply takes about three times as long as rows wait to be written."""


def agents() -> list[Agent]:
    """Make the agents: a desk with a step tool and async tools that emit, one of which hands over to a guide."""

    @step
    def look(topic: str) -> str:
        effect("look")
        emit("looking")
        emit({"topic": topic})
        return f"seen {topic}"

    async def fetch(page: int, context_variables: dict[str, Any]) -> str:
        for part in range(3):
            emit({"page": page, "part": part})
            await asyncio.sleep(0.01 * page)
        effect(f"fetch_{page}")
        context_variables[f"page{page}"] = True
        return f"page {page}"

    async def to_guide() -> Result:
        emit("handing over")
        effect("to_guide")
        return Result(value="the guide takes over", agent=guide)

    guide = Agent(name="Streaming guide", functions=[look])
    return [Agent(name="Streaming desk", functions=[look, fetch, to_guide]), guide]


def model() -> ScriptedModel:
    """Make the model: text and a call, calls alone, a reply that breaks off once in each life, and the end."""
    broken: list[int] = []
    provider_errors.FIRST_PAUSE = 0.02  # Else most of a life is the pause after the broken reply.

    def made(turn: int, *calls: tuple[str, str]) -> list[dict[str, Any]]:
        return [
            {"id": f"t{turn}c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(calls)
        ]

    def reply(request: dict[str, Any]) -> Any:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        text = " ".join(f"turn{turn}word{number}" for number in range(20))
        if turn == 2 and not broken:
            broken.append(turn)
            return cut(text, after=12)
        effect("model")
        if turn == 0:
            return {"role": "assistant", "content": text, "tool_calls": made(0, ("look", '{"topic": "ä"}'))}
        if turn == 1:
            return made(1, ("fetch", '{"page": 1}'), ("to_guide", "{}"), ("fetch", '{"page": 2}'))
        if turn == 2:
            return {"role": "assistant", "content": text, "tool_calls": made(2, ("look", '{"topic": "b"}'))}
        return "The end."

    return ScriptedModel(reply, pace=PACE)


class Companion:
    """A reader in the executing process: it writes down what it sees, and goes on in the next life."""

    def __init__(self, swarm: DurableSwarm, run_id: str) -> None:
        self._swarm = swarm
        self._run_id = run_id
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while True:
            try:
                run = self._swarm.get(self._run_id)
                break
            except errors.RunNotFound:
                time.sleep(0.005)
        follow_into(run, notes(self._run_id))

    def end(self) -> None:
        """Wait until it has read all."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "the reader does not come to an end"


def notes(run_id: str) -> Path:
    """Give the file of a run's companion."""
    return Path(f"{run_id}.told")


def told_of(url: str, run_id: str) -> list[Told]:
    """Give the events of a run as the database has them."""
    parsed = urls.choose(url)
    engine = connection.connect(parsed, create=False)
    store = Store(parsed, engine)
    try:
        return [as_line(event) for event in RecordedEvents(store, run_id).read()]
    finally:
        store.close()


def judge(url: str, run_id: str, messages: list[Message], companion: Path) -> list[str]:
    """Say what is wrong with what was told of an ended run: to whoever reads it now, and to its companion."""
    later, again, seen = told_of(url, run_id), told_of(url, run_id), read_told(companion)
    return [
        *wrongs_of("a late reader", later, messages),
        *wrongs_of("the companion", seen, messages),
        *differences("the companion", seen, later),
        *([] if later == again else ["read twice, the events differ"]),
    ]


__all__ = ["Companion", "agents", "judge", "model", "notes"]
