"""Programs whose answers have a type, killed at every boundary; and what a provider without schemas is asked after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, ScriptedServer, crash_test, serve_scripted
from tests.crash.lives import Lives, hear, say
from tests.crash.matrix import LONG

RUN, QUESTION = "run-typed", [{"role": "user", "content": "How much?"}]


class Refund(BaseModel):
    """What is paid back."""

    amount: int


def look_up() -> str:
    """Look up the order; a program that is to be killed waits here."""
    if Path("stop-here").exists():
        say("in the tool")
        hear()
    return "broken"


def reply(request: dict[str, Any]) -> Any:
    """Look up, answer with a text that does not fit, then with one that does; by a final tool where one is offered."""
    said = [message["role"] for message in request["messages"][2:]]
    if not said:
        return ["look_up"]
    text = '{"amount": 3}' if "user" in said else "Three."
    return text if "response_format" in request else [("final_answer", text)]


def make_agent() -> Agent[Refund]:
    """The agent of all programs here."""
    return Agent(name="Typed clerk", functions=[look_up], output_type=Refund)


def typed() -> Any:
    """A provider with schemas."""
    with DurableSwarm(ScriptedModel(reply)) as swarm:
        return swarm.run(make_agent(), QUESTION, run_id=RUN).output


def typed_by_tool() -> Any:
    """A provider without, streamed."""
    with DurableSwarm(ScriptedModel(reply, refuses=["response_format"])) as swarm:
        *_, last = swarm.run(make_agent(), QUESTION, run_id=RUN, stream=True)
        return last["response"].output


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("scenario", [typed, typed_by_tool])
def test_killed_at_every_boundary(scenario: Any, database_url: str) -> None:
    """Wherever the program is killed, the same answers are judged the same, and the value is the same."""
    url = database_url if database_url.startswith("postgresql") else None
    report = crash_test(scenario, database=url, only=None if LONG else [2, 3, 4, 6])
    assert report.kills == report.cases >= 8


def program(url: str, base_url: str) -> Any:
    """A program that asks a real server."""
    client = openai.OpenAI(base_url=base_url, api_key="sk-test", max_retries=0)
    with DurableSwarm(client, database=url) as swarm:
        first = make_agent().model_copy(update={"name": "Typed first"})
        swarm.run(first, [{"role": "user", "content": "Learn."}], run_id="first")
        return swarm.run(make_agent(), QUESTION, run_id=RUN).output


@pytest.mark.parametrize("stop", ["in the tool", "in the first call"])
def test_the_form_of_the_request_survives(stop: str, lives: Lives, tmp_path: Path) -> None:
    """A provider that refuses schemas is asked, byte for byte, as without the crash: by the final tool at once."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    held: list[Any] = []

    def answer(request: dict[str, Any]) -> Any:
        if stop == "in the first call" and request["messages"][1:] == QUESTION and not held:
            held.append(life.kill())
        return reply(request)

    with serve_scripted(answer, refuses=["response_format"]) as provider:
        life = lives.start(program, url, provider.base_url, ledger=ledger)
        if stop == "in the tool":
            (tmp_path / "stop-here").touch()
            assert life.hear() == "in the tool"
            life.kill()
            (tmp_path / "stop-here").unlink()
        else:
            assert life.outcome()[0] == -9
        before = len(posts(provider))
        assert lives.live(program, url, provider.base_url, ledger=ledger).value == Refund(amount=3)
        sent = posts(provider)
    assert b'"response_format"' in sent[0]
    assert not any(b'"response_format"' in body for body in sent[1:])
    if stop == "in the first call":
        assert sent[before] == sent[before - 1]


def posts(server: ScriptedServer) -> list[bytes]:
    """What was sent, byte for byte."""
    return [request.raw for request in server.requests if request.method == "POST"]
