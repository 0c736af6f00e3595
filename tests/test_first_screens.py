"""What a newcomer meets first: errors that tell recorded from new, one exception, hints that say what to type."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    Block,
    Blocked,
    ConfigurationError,
    DurableSwarm,
    ModelError,
    RunCancelled,
    RunFailed,
)
from durable_swarm.cli import main
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.testing import ProviderError, ScriptedModel
from tests.support import programs
from tests.support.patience import PATIENCE
from tests.support.shell import Shell

ASKED = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line, called in this process."""
    return Shell(capsys)


def raising(error: Exception) -> Agent:
    """Make an agent whose tool raises."""

    def look() -> str:
        raise error

    return Agent(name="Clerk", functions=[look])


@pytest.mark.parametrize("run_id", ["r", "order 7", "it's"])
@pytest.mark.parametrize("kind", ["model", "tool", "cancelled"])
def test_a_recorded_error_says_so(kind: str, run_id: str) -> None:
    """An error that is read says when it was recorded, that nothing was tried now, and the command that continues."""
    model = ScriptedModel([ProviderError("no credit", status_code=402)] if kind == "model" else [["look"]])
    agent = raising(KeyError("price"))
    with DurableSwarm(model) as swarm:
        if kind == "cancelled":
            swarm.enqueue("Clerk", ASKED, run_id=run_id).cancel()
        else:
            with pytest.raises((ModelError, KeyError)) as first:
                swarm.run(agent, ASKED, run_id=run_id)
            assert "recorded at" not in str(first.value)
    asked = len(model.calls)
    with DurableSwarm(model) as swarm, pytest.raises((ModelError, RunFailed, RunCancelled)) as later:
        swarm.run(agent, ASKED, run_id=run_id)
    quoted = {"r": "r", "order 7": "'order 7'", "it's": "'it'\"'\"'s'"}[run_id]
    assert f"durable-swarm resume {quoted}" in str(later.value)
    if kind != "cancelled":
        assert "recorded at 20" in str(later.value)
        assert "nothing was tried now" in str(later.value)
    assert len(model.calls) == asked


def test_recorded_attributes_stay(tmp_path: Path) -> None:
    """The attributes of an error that is read are those that were recorded, read once more or not."""
    with DurableSwarm(ScriptedModel([["look"]])) as swarm, pytest.raises(KeyError):
        swarm.run(raising(KeyError("price")), ASKED, run_id="r")
    for _ in range(2):
        with DurableSwarm(ScriptedModel([])) as swarm, pytest.raises(RunFailed) as told:
            swarm.get("r").result(PATIENCE)
        assert (told.value.error_type, told.value.error_message) == ("KeyError", "'price'")
        assert str(told.value).count("recorded at") == 1


LOST = """
import os, sys
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel
def pay():
    if "die" in sys.argv: os._exit(9)
    return "paid"
asked = [{"role": "user", "content": sys.argv[1]}]
agent = Agent(name="Clerk", functions=[pay])
DurableSwarm(ScriptedModel([["pay"], "Done", ["pay"], "Done"])).run(agent, asked, **eval(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("said", "given", "warns"), [("Hi", "{}", True), ("Ho", "{}", False), ("Hi", "{'run_id': 'x'}", False)]
)
def test_a_run_that_doubles_another(said: str, given: str, warns: bool) -> None:
    """A run without an id warns once where an interrupted one of the same agent and messages continues."""
    programs.run([sys.executable, "-c", LOST, "Hi", "{}", "die"], check=False)
    done = programs.run([sys.executable, "-c", LOST, said, given], capture_output=True, text=True, check=True)
    assert done.stderr.count("continues; run") == int(warns)
    if warns:
        with DurableSwarm(ScriptedModel([])) as swarm:
            assert all(run.id in done.stderr for run in swarm.runs())
        assert "run_id" in done.stderr


@pytest.mark.parametrize("kind", ["refused", "no key"])
def test_one_exception_in_a_traceback(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program sees of a provider that cannot be asked is one exception, not a chain of them."""
    if kind == "refused":
        monkeypatch.setenv("OPENAI_API_KEY", "key-of-a-test")
        monkeypatch.setattr("durable_swarm.models.call.DEFAULT_RETRIES", 0)
    with DurableSwarm(provider_patience=0) as swarm, pytest.raises((ModelError, ConfigurationError)) as caught:
        swarm.run(Agent(), ASKED)
    told = "".join(traceback.format_exception(caught.value))
    assert told.count("Traceback (most recent call last)") == 1
    if kind == "no key":
        assert "ScriptedModel" in str(caught.value)


TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "the request exceeds the available context size. try increasing the context size",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "Error code: 400 - {'error': {'code': 'context_length_exceeded'}}",
    "input is too long for requested model",
]


@pytest.mark.parametrize("text", TOO_LONG)
def test_a_context_that_is_too_long(text: str, shell: Shell) -> None:
    """A refusal of the messages' length names a fork before what is too long, which then works."""
    agent = raising(ValueError())
    agent.functions = [len_of]

    def reply(request: dict[str, Any]) -> Any:
        if any(message["role"] == "tool" for message in request["messages"]):
            return ProviderError(text, status_code=400)
        return ["len_of"]

    with DurableSwarm(ScriptedModel(reply)) as swarm, pytest.raises(ModelError, match="fork the run"):
        swarm.run(agent, ASKED, run_id="r")
    shown = shell("show", "r")
    assert "durable-swarm fork r --turn 0" in shown
    assert "larger context" in shown
    assert shell("fork", "r", "--turn", "0")


def len_of() -> str:
    """Give much text."""
    return "much " * 10


@pytest.mark.parametrize(
    "text", ["wrong context variable", "Incorrect API key", "the tool is too long", "no such model"]
)
def test_other_refusals(text: str) -> None:
    """Other refusals are not taken for it."""
    assert not is_too_long(text)


def test_why_runs_failed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs` says why a run failed, and no line is longer than the terminal; `doctor` warns of failed runs."""
    for run_id in ("one", "a/very/long/name/of/a/run/that/somebody/has/given/to/it/1"):
        with DurableSwarm(ScriptedModel([["look"]])) as swarm, pytest.raises(LookupError):
            swarm.run(raising(LookupError("no such price")), ASKED, run_id=run_id)
    assert shell("runs").count("LookupError: no such price") == 2
    assert "warn  runs" in shell("doctor").replace("warn  runs ", "warn  runs")
    monkeypatch.setattr("durable_swarm.cli.render_runs.width_of", lambda _: 110)
    lines = shell("runs").splitlines()
    assert max(map(len, lines)) <= 110
    assert sum("LookupError: no such price" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("answer", "r", "green", "tea"), "quotes"),
        (("say", "r", "go", "on", "now"), "quotes"),
        (("fork", "r", "--turn", "x"), "'x' is not a whole number"),
        (("run", "--latency", "x", "app.py"), "'x' is not a number"),
        (("aprove", "r"), "No such command 'aprove'. Did you mean 'approve'?"),
    ],
)
def test_hints_for_wrong_use(words: tuple[str, ...], hint: str, shell: Shell) -> None:
    """Wrong use of a command is told in a sentence that says what to do."""
    told = shell(*words, code=2)
    assert hint in told
    assert re.search(r"[.?] See: ", told)


def test_an_empty_log_of_the_package(caplog: pytest.LogCaptureFixture) -> None:
    """A first run of an agent warns of nothing."""
    caplog.set_level(logging.WARNING, "durable_swarm")
    with DurableSwarm(ScriptedModel(["Hello"])) as swarm:
        swarm.run(Agent(), ASKED)
    assert [record.getMessage() for record in caplog.records if "continues; run" in record.getMessage()] == []


def test_a_blocked_run_says_what_helps(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that a guardrail stopped names the fork that continues it; one that it answered shows that answer."""

    def no_rudeness(messages: list[dict[str, Any]]) -> Block:
        return Block("rude", reply=messages[-1]["content"] if messages[-1]["content"] != "fool" else None)

    agent = Agent(name="Polite Clerk", input_guardrails=[no_rudeness])
    with DurableSwarm(ScriptedModel(lambda _: "Hi")) as swarm:
        swarm.run(agent, [{"role": "user", "content": "I ask for politeness."}], run_id="answered")
        with pytest.raises(Blocked):
            swarm.run(agent, [{"role": "user", "content": "fool"}], run_id="stopped")
    assert "stopped by a guardrail.\nassistant: I ask for politeness." in shell("show", "answered")
    for command, code in (("show", 0), ("watch", 1)):
        assert main([command, "stopped"]) == code
        shown = capsys.readouterr().out
        assert "To continue it anyway: durable-swarm fork stopped --turn 0" in shown
        assert "resume stopped" not in shown
