"""Programs killed in a tool and in a model call: what is asked afterwards, and what is paid."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.providers import Fallback, Responses, Routes
from durable_swarm.testing import ScriptedServer, call, serve_scripted, slowly
from tests.crash.lives import Lives, hear, say
from tests.support.patience import PATIENCE

RUN, MODEL = "run-provider", "gpt-5.4"
QUESTION = [{"role": "user", "content": "Where is A1? And what is new?"}]
TEXT = " ".join(f"n{number}" for number in range(40))
LOOK_UP = {**call("look_up", order="A1"), "id": "call_A1"}
CALLS: Any = {"content": "I look.", "reasoning_content": "One order.", "tool_calls": [LOOK_UP]}


def look_up(order: str) -> str:
    """Look up an order."""
    with Path("looked-up").open("a") as ledger:
        ledger.write(f"{order}\n")
    if Path("stop-here").exists():
        say("in the tool")
        hear()
    return "shipped"


def chat(client: Any) -> Any:
    """The client itself."""
    return client


def responses(client: Any) -> Any:
    """The Responses API."""
    return Responses(client)


def in_background(client: Any) -> Any:
    """The Responses API in the background, behind a route and a fallback."""
    return Routes({"claude-*": client, "gpt-*": Fallback(Responses(client, background=True), client)})


KINDS: dict[str, Callable[[Any], Any]] = {"chat": chat, "responses": responses, "background": in_background}


def program(url: str, base_url: str, kind: str, colour: str, streamed: bool) -> str:
    """A program that looks up an order; it says so when a piece of the last answer is there."""
    clerk = Agent(
        name="Clerk",
        model=MODEL,
        instructions=lambda context_variables: f"Serve {context_variables['name']}.",
        functions=[look_up],
        model_settings={"temperature": 0.5, "max_tokens": 500},
    )
    make: Any = openai.OpenAI if colour == "sync" else openai.AsyncOpenAI
    swarm = DurableSwarm(KINDS[kind](make(base_url=base_url, api_key="sk-test", max_retries=0)), database=url)
    if not streamed:
        return str(swarm.run(clerk, QUESTION, {"name": "Ada"}, run_id=RUN).messages[-1]["content"])
    last: Any = {}
    for item in swarm.run(clerk, QUESTION, {"name": "Ada"}, run_id=RUN, stream=True):
        if item.get("content") == "n0":
            say("speaking")
        last = item
    return str(last["response"].messages[-1]["content"])


@pytest.fixture
def provider() -> Iterator[ScriptedServer]:
    """A provider whose second answer takes its time."""

    def reply(request: dict[str, Any]) -> Any:
        done = any(message["role"] == "tool" for message in request["messages"])
        return slowly(TEXT, latency=0.3, pace=0.01) if done else CALLS

    with serve_scripted(reply) as server:
        yield server


def bodies(server: ScriptedServer) -> list[bytes]:
    """Return what was sent, byte for byte."""
    return [request.raw for request in server.requests if request.method == "POST"]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_request_after_a_crash_is_the_one_without(
    kind: str, streamed: bool, lives: Lives, provider: ScriptedServer, tmp_path: Path
) -> None:
    """Killed in its tool and started again, a program sends, byte for byte, what one sends that nothing happened to."""
    ledger = tmp_path / "ledger"
    url = f"sqlite:///{tmp_path}/whole.sqlite"
    lives.live(program, url, provider.base_url, kind, "sync", streamed, ledger=ledger)
    unharmed = bodies(provider)
    provider.requests.clear()
    (tmp_path / "stop-here").touch()
    url = f"sqlite:///{tmp_path}/killed.sqlite"
    life = lives.start(program, url, provider.base_url, kind, "sync", streamed, ledger=ledger)
    assert life.hear() == "in the tool"
    life.kill()
    (tmp_path / "stop-here").unlink()
    assert lives.start(program, url, provider.base_url, kind, "sync", streamed, ledger=ledger).outcome()[1] == TEXT
    assert len(unharmed) == 2
    assert bodies(provider) == unharmed
    reasoning = [item for item in json.loads(unharmed[1]).get("input", ()) if item.get("type") == "reasoning"]
    assert len(reasoning) == (kind != "chat")


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_call_in_the_background_is_fetched_and_paid_once(
    colour: str, lives: Lives, provider: ScriptedServer, tmp_path: Path, database_url: str
) -> None:
    """Killed while it waits for an answer, a program gets that answer after its start, and asks for no other."""
    task = program, database_url, provider.base_url, "background", colour, False
    for _ in range(2):
        provider.requests.clear()
        life = lives.start(*task, ledger=tmp_path / "ledger")
        until(lambda: any("/resp_2?" in request.path for request in provider.requests))
        life.kill()
    assert lives.live(*task, ledger=tmp_path / "ledger").value == TEXT
    assert len(provider.calls) == 2
    assert (tmp_path / "looked-up").read_text() == "A1\n"


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_streamed_call_in_the_background_is_fetched_too(
    colour: str, lives: Lives, provider: ScriptedServer, tmp_path: Path
) -> None:
    """Killed in a streamed answer, a program streams that answer from its beginning, and asks for no other."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    task = program, url, provider.base_url, "background", colour, True
    for _ in range(2):
        life = lives.start(*task, ledger=tmp_path / "ledger")
        assert life.hear() == "speaking"
        life.kill()
    last = lives.start(*task, ledger=tmp_path / "ledger")
    assert last.outcome()[1] == TEXT
    assert len(provider.calls) == 2
    with DurableSwarm(database=url) as swarm:
        told = [event.type for event in swarm.get(RUN).events()]
    assert told.count("text.reset") >= 1


def test_a_call_in_the_foreground_is_made_once_more(lives: Lives, provider: ScriptedServer, tmp_path: Path) -> None:
    """Without `background` there is nothing to fetch: the same request is sent again, byte for byte."""
    task = program, f"sqlite:///{tmp_path}/runs.sqlite", provider.base_url, "responses", "sync", True
    life = lives.start(*task, ledger=tmp_path / "ledger")
    assert life.hear() == "speaking"
    life.kill()
    assert lives.start(*task, ledger=tmp_path / "ledger").outcome()[1] == TEXT
    first, killed, again = bodies(provider)
    assert killed == again != first
