"""Compaction: a summary takes the place of a session's first messages, for the model only."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from durable_swarm import Agent, Compaction, ConfigurationError, LimitReached, Limits, ModelError
from durable_swarm.swarm.compaction import HEADING
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run
from tests.contract.test_sessions import assert_legal, echo, said
from tests.engine.helpers import unique


def test_a_function_writes_the_summary(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """When the messages are more than `at_messages`, the first ones are summarized, the last `keep_last` stay."""
    given: list[list[str]] = []

    def summarize(messages: list[Any]) -> str:
        given.append([message["content"] for message in messages])
        return f"summary {len(given)}"

    model = ScriptedModel(echo)
    compaction = Compaction(at_messages=5, keep_last=3, function=summarize)
    session = make_swarm(model).session("short", Agent(name="CompactShort"), compaction=compaction)
    for number in range(1, 5):
        plain_run(session, str(number))
    assert [len(said(request)) for request in model.calls] == [1, 3, 5, 4]
    assert said(model.calls[3]) == [f"{HEADING}summary 1", "3", "re: 3", "4"]
    assert given == [["1", "re: 1", "2", "re: 2"]]
    plain_run(session, "5")
    assert said(model.calls[4]) == [f"{HEADING}summary 2", "4", "re: 4", "5"]
    assert given[1] == [f"{HEADING}summary 1", "3", "re: 3"]
    assert [message["content"] for message in session.messages()] == [
        text for number in range(1, 6) for text in (str(number), f"re: {number}")
    ]


def test_a_model_writes_the_summary(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Without a function a model is asked, by its own instructions, and its tokens count."""

    def reply(request: Any) -> str:
        return "They met." if request["messages"][0]["content"] == "Be brief." else echo(request)

    model = ScriptedModel(reply)
    compaction = Compaction(at_tokens=20, keep_last=1, model="small", instructions="Be brief.")
    session = make_swarm(model).session("asked", Agent(name="CompactAsked"), compaction=compaction)
    plain_run(session, "Hello, my name is Ann and I live in a town by the sea")
    response = plain_run(session, "What is my name?")
    asked = model.calls[1]
    assert (asked["model"], len(asked["messages"]), asked.get("tools")) == ("small", 2, None)
    assert "Ann" in asked["messages"][1]["content"]
    assert said(model.calls[2]) == [f"{HEADING}They met.", "What is my name?"]
    assert response.usage is not None
    assert response.usage.requests == 2
    assert session.usage.requests == 3


def summing(request: Any) -> str:
    """Write a summary where one is asked for, else echo."""
    return "They met." if request["messages"][0]["content"] == "Be brief." else echo(request)


SUMMED = Compaction(at_messages=2, keep_last=1, model="small", instructions="Be brief.")


@pytest.mark.parametrize("allowed", [{"requests": 3}, {"cost": 7}], ids=str)
def test_a_summary_counts_for_the_limits(allowed: Any, make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The model call that writes a summary counts for its session, with its price."""
    model = ScriptedModel(summing)
    swarm = make_swarm(model, prices=lambda model, _: Decimal(5) if model == "small" else Decimal(1))
    limits = Limits(**allowed)
    session = swarm.session(unique("summed"), Agent(name=unique()), compaction=SUMMED, limits=limits)
    plain_run(session, "one")
    plain_run(session, "two")
    with pytest.raises(LimitReached) as caught:
        plain_run(session, "three")
    assert {caught.value.limit: caught.value.used} == allowed
    assert len(model.calls) == 3


def test_no_summary_is_written_beyond_a_limit(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A run that may ask once asks for the summary, and not for its answer; one that may not ask asks nothing."""
    model = ScriptedModel(summing)
    session = make_swarm(model).session(unique("summed"), Agent(name=unique()), compaction=SUMMED)
    plain_run(session, "one")
    for allowed in (1, 0):
        before = len(model.calls)
        with pytest.raises(LimitReached) as caught:
            plain_run(session, "two", limits=Limits(requests=allowed))
        assert (caught.value.used, len(model.calls) - before) == (allowed, allowed)


def test_a_call_stays_with_its_result(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A summary never ends between a call and its result."""

    def look() -> str:
        return "seen"

    model = ScriptedModel(lambda request: [("look", {})] if said(request)[-1] == "look" else echo(request))
    compaction = Compaction(at_messages=4, keep_last=3, function=lambda messages: "so far")
    agent = Agent(name="CompactCalls", functions=[look])
    session = make_swarm(model).session("calls", agent, compaction=compaction)
    plain_run(session, "look")
    plain_run(session, "next")
    assert_legal(model.calls[-1])
    assert said(model.calls[-1])[0] == f"{HEADING}so far"
    assert said(model.calls[-1])[-2:] == ["re: seen", "next"]


def test_a_bad_compaction_is_refused() -> None:
    """A compaction that could never take place, or whose parts exclude each other, is refused when it is made."""
    bad: list[dict[str, Any]] = [
        {},
        {"at_messages": 4},
        {"at_messages": 0, "keep_last": 0},
        {"at_tokens": 0},
        {"at_tokens": 10, "keep_last": -1},
        {"at_tokens": 10, "function": "text"},
        {"at_tokens": 10, "function": str, "model": "small"},
    ]
    for arguments in bad:
        with pytest.raises(ConfigurationError):
            Compaction(**arguments)


def test_a_summary_that_fails_fails_the_run(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """An error of the summary is the run's: nothing is forgotten without a summary."""
    answers: list[Any] = ["", "fine"]
    compaction = Compaction(at_messages=1, keep_last=0, function=lambda messages: answers.pop(0))
    swarm = make_swarm(ScriptedModel(echo))
    session = swarm.session("bad", Agent(name="CompactBad"), compaction=compaction)
    with pytest.raises(ConfigurationError):
        swarm.session("bad", compaction=8)
    plain_run(session, "one")
    with pytest.raises((ConfigurationError, ModelError), match="summary"):
        plain_run(session, "two")
    assert plain_run(session, "three").messages[-1]["content"] == "re: three"
