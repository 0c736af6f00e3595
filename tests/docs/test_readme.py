"""The examples of the README and the reference run as they are, and the first one survives `kill -9`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, ScriptedServer, call, serve_scripted
from tests.docs.pages import blocks_of, examples_of
from tests.support import programs

BLOCKS = [block.text for block in blocks_of("README.md", "python")]
EVENTS = examples_of("docs/events.md")


def model(killing: list[subprocess.Popen[str]]) -> Any:
    """Give the provider's side of the example; it kills the program in its third request, once."""

    def reply(request: dict[str, Any]) -> Any:
        done = sum(message["role"] == "assistant" for message in request["messages"])
        if done == 2 and killing:
            killing.pop().kill()
        return [[call("transfer_to_refunds")], [call("process_refund", item_id="99")], "Your refund is on its way."][
            done
        ]

    return reply


def start(provider: ScriptedServer, folder: Path) -> subprocess.Popen[str]:
    """Start the example as a program."""
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.base_url}
    command = [sys.executable, "app.py"]
    return programs.Program(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_first_example_survives_a_kill(tmp_path: Path) -> None:
    """The twenty lines, killed with SIGKILL in a model call and started again, refund once and answer."""
    (tmp_path / "app.py").write_text(BLOCKS[0])
    killing: list[subprocess.Popen[str]] = []
    with serve_scripted(model(killing)) as provider:
        first = start(provider, tmp_path)
        killing.append(first)
        before, _ = first.communicate(timeout=200)
        second, third = start(provider, tmp_path), start(provider, tmp_path)
        after, _ = second.communicate(timeout=200)
        again, _ = third.communicate(timeout=200)
    assert (first.returncode, second.returncode, third.returncode) == (-9, 0, 0)
    assert (before, after) == ("", "Your refund is on its way.\n") or before == "refunding 99\n"
    assert "refunding" not in after
    assert again == "Your refund is on its way.\n"


def test_the_first_example_is_under_twenty_lines() -> None:
    """The first example has at most twenty lines of code."""
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) < 20


def test_the_example_of_people_asks_them() -> None:
    """In the example of approvals a refund over 100 waits for a yes, and a gift for a choice."""
    names: dict[str, Any] = {"bank": types.SimpleNamespace(refund=lambda _, amount: f"refunded {amount}")}
    exec(next(block for block in BLOCKS if "def choose_gift" in block), names)
    agent = Agent(functions=[names["refund"], names["choose_gift"]])
    script = [
        [call("refund", customer="Ann", amount=amount) for amount in (50, 500)],
        [call("choose_gift", customer="Ann")],
    ]
    decided: list[str] = []
    with DurableSwarm(ScriptedModel([*script, "Done."])) as client:
        run = client.start(agent, [{"role": "user", "content": "Hi"}], run_id="one")
        while run.status != "done":
            for request in run.requests():
                decided.append(request.kind)
                run.approve(request.id) if request.kind == "approval" else run.answer("a book", request.id)
            time.sleep(0.01)
        said = [message["content"] for message in run.messages() if message["role"] == "tool"]
    assert (decided, said) == (["approval", "question"], ["refunded 50", "refunded 500", "a book"])


def test_the_example_of_events_follows_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of events prints what the agent of a run says."""
    names: dict[str, Any] = {"DurableSwarm": DurableSwarm}
    exec(next(block for block in EVENTS if "def follow" in block), names)
    with DurableSwarm(ScriptedModel(["Hello there"])) as client:
        client.start(Agent(), [{"role": "user", "content": "Hi"}], run_id="one")
        names["follow"](client, "one")
    assert capsys.readouterr().out == "Hello there"
