"""The door `openai`, asked by the Agents SDK of OpenAI: an agent of ours is the model of one of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.support import programs

pytest.importorskip("agents")

PROGRAM = """
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

def look() -> str:
    return "rain"

def reply(request):
    last = request["messages"][-1]
    return f"It is {last['content']}." if last["role"] == "tool" else ["look"]

clerk = Agent(name="Clerk", functions=[look])
swarm = DurableSwarm(ScriptedModel(reply, strict=False), database="sqlite:///runs.sqlite")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the program."""
    folder: Path = tmp_path_factory.mktemp("served")
    (folder / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "DURABLE_SWARM_SERVER_TOKEN": "secret"}
    command = [sys.executable, "-m", "durable_swarm", "serve", "program:swarm", "--port", "0", "--doors", "openai"]
    process = programs.Program(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().rpartition(" at ")[2].partition("/runs")[0] + "/v1"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def anyio_backend() -> str:
    """Where the tests run."""
    return "asyncio"


@asynccontextmanager
async def theirs(base: str, shape: str) -> AsyncIterator[Any]:
    """Return an agent of theirs whose model is ours."""
    import agents

    agents.set_tracing_disabled(True)
    kinds = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}
    async with AsyncOpenAI(base_url=base, api_key="secret", max_retries=0) as client:
        yield agents.Agent(name="Front", instructions="Ask.", model=kinds[shape]("Clerk", client))


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["chat", "responses"])
async def test_their_runner_asks_our_agent(base: str, shape: str) -> None:
    """The answer is that of our run; its tool calls are our own business."""
    from agents import Runner

    async with theirs(base, shape) as agent:
        result = await Runner.run(agent, "How is the weather?")
    assert result.final_output == "It is rain."
    assert [item.type for item in result.new_items] == ["message_output_item"]


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["chat", "responses"])
async def test_their_runner_streams_our_agent(base: str, shape: str) -> None:
    """The pieces of text are the answer, and a second question is answered, too."""
    from agents import Runner

    async with theirs(base, shape) as agent:
        for _ in range(2):
            result, text = Runner.run_streamed(agent, "How is the weather?"), ""
            async for event in result.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    text += event.data.delta
            assert text == result.final_output == "It is rain."
