"""Verdicts of guardrails in the database: recorded as steps, never asked twice, told to every reader."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, Block, Blocked, DurableSwarm, tool
from durable_swarm.testing import ScriptedModel, replay
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until
from tests.support.shell import Shell

SORRY = "I cannot help with that."


class Words:
    """A guardrail that counts how often it was asked."""

    def __init__(self, verdict: Block | None = None) -> None:
        self.verdict = verdict
        self.asked = 0

    def words(self, what: Any) -> Block | None:
        """The guardrail."""
        self.asked += 1
        return self.verdict


@tool(approval=True)
def pay() -> str:
    """Pay."""
    return "paid"


def texts(run: Any) -> list[str]:
    """What a reader of the events has of the run's texts, by what is void: each text, and a reset as ''."""
    events = list(run.events())
    return [event.data.get("text", "") for event in events if event.type in ("text.delta", "text.reset")]


def test_verdicts_are_steps(make_anywhere: Make) -> None:
    """Each verdict is a step named for its guardrail, with what it said; the order of the steps is that of the run."""
    first, last = Words(), Words(Block("too long", SORRY))
    agent = Agent(name=unique(), input_guardrails=[first.words], output_guardrails=[last.words])
    swarm = make_anywhere(ScriptedModel(["Hello"]))
    assert swarm.run(agent, user(), run_id="r").ended_by == "guardrail"
    steps = swarm.get("r").steps()
    assert [(step.name, step.kind, step.turn) for step in steps] == [
        ("guardrail:words", "guardrail", 0),
        (f"model:{agent.name}", "model", 0),
        ("guardrail:words", "guardrail", 0),
    ]
    assert [step.output for step in steps if step.kind == "guardrail"] == ["passed", "blocked: too long"]


@pytest.mark.parametrize("kind", ["input", "output"])
def test_every_reader_is_told(make: Make, url: str, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Live and later, the events take the text back and give the reply; the screens say that a guardrail stopped it."""
    agent = Agent(name=unique(), **{f"{kind}_guardrails": [Words(Block("rude", SORRY)).words]})
    swarm = make(ScriptedModel(["Hello"]))
    run = swarm.start(agent, user(), run_id="r")
    live = texts(run)
    assert "".join(live[live.index("") :]) == SORRY
    assert run.result(PATIENCE).messages[-1]["content"] == SORRY
    swarm.close()
    later = make(ScriptedModel([])).get("r")
    assert texts(later) == live
    assert (later.ended_by, later.output()) == ("guardrail", None)
    assert later.messages() == later.result().messages
    shell = Shell(capsys)
    shown = shell("show", "r", "--database", url)
    assert "stopped by a guardrail" in shown
    assert "blocked: rude" in shown
    assert json.loads(shell("runs", "--json", "--database", url))[0]["ended_by"] == "guardrail"
    assert "stopped by a guardrail" in shell("watch", "r", "--database", url)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_blocked_run_stays_blocked(make: Make, kind: str) -> None:
    """A run that failed by a guardrail says so later, and `resume` gives the recorded verdict without asking again."""
    words = Words(Block("rude"))
    agent = Agent(name=unique(), **{f"{kind}_guardrails": [words.words]})
    model = ScriptedModel(["Hello"])
    with pytest.raises(Blocked):
        make(model).run(agent, user(), run_id="r")
    run = make(model).get("r")
    for _ in range(2):
        with pytest.raises(Blocked) as caught:
            run.result(PATIENCE)
        assert (caught.value.guardrail, caught.value.reason) == ("words", "rude")
        run.resume()
        wait_until(lambda: run.status == "failed")
    assert (words.asked, len(model.calls)) == (1, 1)
    steps = [step for step in run.steps() if step.kind == "guardrail"]
    assert [(step.status, step.output) for step in steps] == [("failed", "blocked: rude")]
    events = [event.type for event in run.events()]
    assert events.count("run.failed") == 3
    assert events.count("text.reset") == 1


def test_a_guardrail_that_raised_is_asked_again(make: Make) -> None:
    """After an exception of a guardrail `resume` asks it again, and nothing that has finished."""
    fixed: list[bool] = []
    other = Words()

    def broken(messages: Any) -> None:
        if not fixed:
            raise LookupError("no list of words")

    agent = Agent(name=unique(), output_guardrails=[other.words, broken])
    swarm = make(ScriptedModel(["Hello"]))
    with pytest.raises(LookupError):
        swarm.run(agent, user(), run_id="r")
    fixed.append(True)
    run = swarm.get("r")
    run.resume()
    assert run.result(PATIENCE).ended_by == "answer"
    assert other.asked == 1


def test_a_change_of_the_list_strands_no_run(make: Make) -> None:
    """A run that waits goes on with the guardrails it began with, though the agent has others or none by now."""
    for number, (before, after) in enumerate([([], [Words().words]), ([Words().words], [])]):
        agent = Agent(name=unique(), functions=[pay], input_guardrails=before, output_guardrails=before)
        swarm = make(ScriptedModel([["pay"]]))
        run = swarm.start(agent, user(), run_id=f"r{number}")
        wait_until(run.requests)
        swarm.close()
        agent.input_guardrails = agent.output_guardrails = after
        again = make(ScriptedModel(lambda _: "Done."))
        again.recover()
        again.get(f"r{number}").approve()
        assert again.get(f"r{number}").result(PATIENCE).messages[-1]["content"] == "Done."
        names = [step.name for step in again.get(f"r{number}").steps() if step.kind == "guardrail"]
        assert names == ["guardrail:words"]
        again.close()


def test_while_a_guardrail_thinks(make: Make) -> None:
    """Meanwhile the run's messages are legal, its status is `running`, and its calls wait; then all go on."""
    free = threading.Event()

    def slow(messages: Any) -> None:
        assert free.wait(PATIENCE)

    def note() -> str:
        return "noted"

    agent = Agent(name=unique(), functions=[note], input_guardrails=[slow])
    swarm = make(ScriptedModel([["note"], "Done."]))
    run = swarm.start(agent, user(), run_id="r")
    wait_until(run.messages)
    assert [message["content"] for message in run.messages()] == [None, "Error: no result yet."]
    assert run.status == "running"
    free.set()
    assert run.result(PATIENCE).messages[1]["content"] == "noted"
    assert [event.type for event in run.events()].count("tool.started") == 1


def test_replay_takes_the_recorded_verdict(make: Make) -> None:
    """Replay asks no guardrail: it takes the recorded verdict, and ends as the run did."""
    words = Words(Block("rude", SORRY))
    agent = Agent(name=unique(), input_guardrails=[words.words])
    make(ScriptedModel(["Hello"])).run(agent, user(), run_id="r")
    assert replay("r").same
    assert words.asked == 1


def test_an_imported_run_is_read_as_it_was(make: Make, tmp_path: Path) -> None:
    """An exported run with verdicts and a value is the same where it is imported, also with its texts redacted."""
    first, last = Words(), Words(Block("too long", SORRY))
    agent = Agent(name=unique(), output_type=int, input_guardrails=[first.words], output_guardrails=[last.words])
    swarm = make(ScriptedModel(["x", '{"value": 3}', '{"value": 4}']))
    swarm.run(agent, user(), run_id="blocked")
    last.verdict = None
    swarm.run(agent, user(), run_id="passed")
    documents = [swarm.export("blocked"), swarm.export("passed")]
    masked = swarm.export("blocked", redact=lambda path, value: "masked")
    told = {run_id: (swarm.get(run_id).messages(), swarm.get(run_id).output()) for run_id in ("blocked", "passed")}
    steps = [(step.name, step.output) for step in swarm.get("blocked").steps()]
    swarm.close()
    other = make(ScriptedModel([]), database=f"sqlite:///{tmp_path}/other.sqlite")
    for document in documents:
        run = other.import_run(document)
        assert (run.messages(), run.output()) == told[run.id]
    assert [(step.name, step.output) for step in other.get("blocked").steps()] == steps
    other.close()
    third = make(ScriptedModel([]), database=f"sqlite:///{tmp_path}/third.sqlite").import_run(masked)
    assert (third.ended_by, [message["content"] for message in third.messages()]) == ("guardrail", ["masked"] * 3)


def test_a_fork_keeps_what_has_passed(make: Make) -> None:
    """A fork from a later turn asks no input guardrail again, but judges its own answer; one from the start asks."""
    first, last = Words(), Words()

    def note() -> str:
        return "noted"

    agent = Agent(name=unique(), functions=[note], input_guardrails=[first.words], output_guardrails=[last.words])
    swarm: DurableSwarm = make(ScriptedModel([["note"], "Done.", "Again.", ["note"], "Anew."]))
    swarm.run(agent, user(), run_id="r")
    assert swarm.get("r").fork(1).result(PATIENCE).messages[-1]["content"] == "Again."
    assert (first.asked, last.asked) == (1, 2)
    assert swarm.get("r").fork(0).result(PATIENCE).messages[-1]["content"] == "Anew."
    assert (first.asked, last.asked) == (2, 3)
