"""`durable-swarm resume --all`: which failed runs continue, and what is printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, ModelError
from durable_swarm.testing import ProviderError, ScriptedModel
from tests.support.shell import Shell

ASKED = [{"role": "user", "content": "Hi"}]
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line, called in this process."""
    return Shell(capsys)


def break_down() -> str:
    """Raise."""
    raise KeyError("price")


@pytest.fixture(autouse=True)
def _ended() -> None:
    """Make a run that a refusal ended, one that a tool ended, one that is done, and one that was cancelled."""
    model = ScriptedModel([ProviderError("not like this", status_code=400), ["break_down"], "Done."])
    with DurableSwarm(model) as swarm:
        with pytest.raises(ModelError):
            swarm.run(Agent(name="Refused"), ASKED, run_id="refused")
        with pytest.raises(KeyError):
            swarm.run(Agent(name="Broken", functions=[break_down]), ASKED, run_id="broken")
        swarm.run(Agent(name="Refused"), ASKED, run_id="done")
        swarm.enqueue("Refused", ASKED, run_id="cancelled").cancel()


def states() -> dict[str, str]:
    """Return the status of each run."""
    with DurableSwarm(ScriptedModel([]), name="elsewhere") as swarm:
        return {run.id: run.status for run in swarm.runs()}


@pytest.mark.parametrize(
    ("options", "resumed"),
    [
        ([], ["refused", "broken"]),
        (["--agent", "Broken"], ["broken"]),
        (["--error", "ModelError"], ["refused"]),
        (["--error", "durable_swarm.errors.ModelError"], ["refused"]),
        (["--error", "KeyError", "--agent", "Refused"], []),
        (["--since", "2h"], ["refused", "broken"]),
        (["--since", TOMORROW], []),
    ],
    ids=["all", "agent", "error", "full name", "two filters", "age", "moment"],
)
def test_failed_runs_are_resumed_together(shell: Shell, options: list[str], resumed: list[str]) -> None:
    """`resume --all` resumes the failed runs that its options select, and names each; cancelled ones stay cancelled."""
    told = shell("resume", "--all", *options).splitlines()
    assert [line.split()[0] for line in told[:-1]] == resumed
    assert told[-1].startswith(["No failed run was selected", "Resumed 1 run.", "Resumed 2 runs."][len(resumed)])
    ended = {"refused": "failed", "broken": "failed", "done": "done", "cancelled": "cancelled"}
    assert states() == ended | dict.fromkeys(resumed, "running")


def test_the_resumed_runs_as_json(shell: Shell) -> None:
    """With `--json` the resumed runs are a list, as in `runs --json`; one that was named is an object."""
    found: list[dict[str, Any]] = json.loads(shell("resume", "--all", "--json"))
    told = [(run["id"], run["agent"], run["status"]) for run in found]
    assert told == [("refused", "Refused", "running"), ("broken", "Broken", "running")]
    assert json.loads(shell("resume", "cancelled", "--json"))["status"] == "running"


@pytest.mark.parametrize(
    "words", ["", "x --all", "x --agent A", "--agent A", "--error E", "--all --since soon", "--all --since 2y"]
)
def test_what_is_to_be_resumed_is_said_once(shell: Shell, words: str) -> None:
    """Neither an id nor `--all`, both, a filter of one run and a time that is none are wrong use."""
    shell("resume", *words.split(), code=2)
