"""Values of a type in the database: read later and elsewhere, judged once, and asked for again by `resume`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from durable_swarm import Agent, DurableSwarm, InvalidOutput, tool
from durable_swarm.engine.records import runs
from durable_swarm.loop import Reply, Verdict
from durable_swarm.providers import Responses
from durable_swarm.testing import ScriptedModel, replay, serve_scripted
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until
from tests.support.shell import Shell

GOOD = '{"amount": 3}'


class Refund(BaseModel):
    """The type at first."""

    amount: int


class Stricter(BaseModel):
    """The type after a change of the program."""

    amount: int
    reason: str


@tool(approval=True)
def pay() -> str:
    """Pay."""
    return "paid"


def test_a_value_is_read_later(make: Make) -> None:
    """`Run.output` reads the answer of a run by the agent's type or a given one, else as plain data."""
    agent = Agent(name=unique(), output_type=Refund)
    assert make(ScriptedModel(["x", GOOD])).run(agent, user(), run_id="r").output == Refund(amount=3)
    run = make(ScriptedModel([])).get("r")
    assert run.output() == run.result().output == Refund(amount=3)
    assert run.output(dict[str, int]) == {"amount": 3}
    with pytest.raises(InvalidOutput, match="reason: Field required"):
        run.output(Stricter)
    agent.output_type = Stricter
    assert run.output() == {"amount": 3}
    agent.name = unique()
    assert run.output() == run.result().output == {"amount": 3}


def test_a_wrapped_value_is_read_without_its_type(make: Make) -> None:
    """Of an agent that is not defined here the value is plain data, without the object that it was wrapped in."""
    agent = Agent(name=unique(), output_type=list[Refund])
    make(ScriptedModel(['{"value": [{"amount": 3}]}'])).run(agent, user(), run_id="r")
    agent.name = unique()
    assert make(ScriptedModel([])).get("r").output() == [{"amount": 3}]


def test_output_of_runs_without_one(make: Make) -> None:
    """A run without type, one that goes on, and one that failed have no output; a text can be read by a type."""
    swarm = make(ScriptedModel([GOOD, ["pay"], "x"]))
    agent = Agent(name=unique(), functions=[pay])
    swarm.run(agent, user(), run_id="text")
    assert swarm.get("text").output() is None
    assert asyncio.run(swarm.get("text").output_async(Refund)) == Refund(amount=3)
    waiting = swarm.start(agent, user(), run_id="waiting")
    wait_until(waiting.requests)
    assert waiting.output() is None
    typed = Agent(name=unique(), output_type=Refund, output_retries=0)
    with pytest.raises(InvalidOutput):
        swarm.run(typed, user(), run_id="failed")
    assert swarm.get("failed").output() is None


def test_resume_asks_once_more(make: Make) -> None:
    """A run that failed for its answers keeps the corrections, and asks for another answer when it is resumed."""
    agent = Agent(name=unique(), output_type=Refund, output_retries=1)
    model = ScriptedModel(["a", "b", "c", GOOD])
    swarm = make(model)
    with pytest.raises(InvalidOutput):
        swarm.run(agent, user(), run_id="r")
    run = make(model).get("r")
    for _ in range(2):
        with pytest.raises(InvalidOutput, match=r"durable-swarm resume r") as caught:
            run.result()
        assert (caught.value.text, caught.value.tries) == (model.calls and "bc"[len(model.calls) - 2], 2)
        run.resume()
        wait_until(lambda: run.status != "running")
    assert run.result(PATIENCE).output == Refund(amount=3)
    assert len(model.calls) == 4
    assert [message["role"] for message in run.messages()] == ["assistant", "user", "assistant"]


def test_a_recorded_answer_is_never_judged_again(make: Make) -> None:
    """A run that goes on with another type follows its records: what did not fit stays corrected, what fits stays."""
    agent = Agent(name=unique(), functions=[pay], output_type=Stricter)
    swarm = make(ScriptedModel([GOOD, ["pay"]]))
    run = swarm.start(agent, user(), run_id="r")
    wait_until(run.requests)
    told = run.messages()
    swarm.close()
    agent.output_type = Refund
    again = make(ScriptedModel(lambda _: '{"amount": 4}'))
    again.recover()
    again.get("r").approve()
    response = again.get("r").result(PATIENCE)
    assert response.messages[: len(told) - 1] == told[:-1]
    assert response.output == Refund(amount=4)


def test_what_did_not_fit_is_shown(make: Make, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps, the messages and the events of a run tell of the answer and of its correction."""
    agent = Agent(name=unique(), output_type=Refund)
    swarm = make(ScriptedModel(["x", GOOD]))
    swarm.run(agent, user(), run_id="r")
    run = swarm.get("r")
    steps = run.steps()
    assert [bool(step.misfit) for step in steps] == [True, False]
    assert steps[0].misfit == run.messages()[1]["content"]
    assert [event.type for event in run.events()].count("turn.started") == 2
    shown = Shell(capsys)("show", "r", "--database", url)
    assert shown.count("does not fit the output type") == 1


def test_forks_keep_corrections(make: Make) -> None:
    """A fork after an answer that did not fit goes on with the correction, also without a message of its own."""
    agent = Agent(name=unique(), output_type=Refund)
    swarm = make(ScriptedModel(["x", GOOD, '{"amount": 4}']))
    swarm.run(agent, user(), run_id="r")
    fork = swarm.get("r").fork(1, run_id="f")
    assert fork.result(PATIENCE).output == Refund(amount=4)
    assert [message["role"] for message in fork.messages()] == ["assistant", "user", "assistant"]


def test_replay_judges_by_the_present_type(make: Make) -> None:
    """Replay against another type tells where it would have judged otherwise."""
    agent = Agent(name=unique(), output_type=Refund)
    swarm = make(ScriptedModel(["x", GOOD]))
    swarm.run(agent, user(), run_id="r")
    assert replay("r").same
    agent.output_type = Stricter
    changed = replay("r")
    assert [found.turn for found in changed.differences if found.what.startswith("what the model is told")] == [0, 1]


@pytest.mark.parametrize("refuses", [(), ("response_format",)])
def test_the_responses_api_is_asked_for_a_value(refuses: tuple[str, ...], tmp_path: Path) -> None:
    """OpenAI's Responses API gets the schema as `text.format`, or where that is refused the final tool."""

    def reply(request: dict[str, Any]) -> Any:
        return GOOD if "response_format" in request else [("final_answer", GOOD)]

    agent = Agent(name=unique(), output_type=Refund)
    with serve_scripted(reply, refuses=refuses) as server, server.client() as client:
        with DurableSwarm(Responses(client), database=f"sqlite:///{tmp_path}/runs.sqlite") as swarm:
            assert swarm.run(agent, user()).output == Refund(amount=3)
        sent = server.requests[0].body["text"]["format"]
    assert (sent["type"], sent["name"], sent["strict"]) == ("json_schema", "Refund", True)


@pytest.mark.parametrize("verdict", [None, Verdict(), Verdict(wrapped=True), Verdict(tell="Error: \ud800 no")])
def test_a_verdict_is_in_the_record(verdict: Verdict | None) -> None:
    """The record of a reply has its verdict, and one without, as of earlier versions, has none."""
    reply = Reply({"role": "assistant", "content": "x", "tool_calls": None}, [], verdict=verdict)
    record = runs.reply_record(reply, model="m", version="v", at=1, shown=None)
    assert runs.read_reply(record).verdict == verdict
    assert ("verdict" in record) is (verdict is not None)
