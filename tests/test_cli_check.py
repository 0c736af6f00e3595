"""`durable-swarm check`: old runs under new code, told before a deploy, and what becomes of them then."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, tool
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.helpers import user, wait_until
from tests.support import programs

VERSION = """
from durable_swarm import Agent, DurableSwarm, tool
from durable_swarm.testing import ScriptedModel

@tool(approval=True)
def {tool}(amount: int) -> str:
    return "refunded"

def added() -> str:
    return "new"

clerk = Agent(name="{agent}", instructions="{prompt}", functions=[{tool}{more}])
swarm = DurableSwarm(ScriptedModel(lambda _: "Done.", strict=False), changed_agents="{policy}")
"""
SAME = {"tool": "refund", "agent": "Checked clerk", "prompt": "Old.", "more": "", "policy": "continue"}


@tool(approval=True)
def refund(amount: int) -> str:
    """Refund an amount; the words of the versions have none of these."""
    return "refunded"


refund.__doc__ = None


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A database with runs of an old version: one has an open call, one waits for a worker, others matter not."""
    database_url = f"sqlite:///{tmp_path}/runs.sqlite"
    clerk = Agent(name="Checked clerk", instructions="Old.", functions=[refund])
    model = ScriptedModel([[call("refund", amount=5)]])
    with DurableSwarm(model, database=database_url) as swarm:
        swarm.start(clerk, user(), run_id="open")
        wait_until(swarm.requests)
        swarm.enqueue("Checked clerk", user(), run_id="queued")
        swarm.enqueue("Checked clerk", user(), run_id="ended").cancel()
    with DurableSwarm(database=database_url, name="other") as other:
        other.enqueue("Nobody", user(), run_id="theirs")
    return database_url


def checked(url: str, **changes: str) -> tuple[int, dict[str, Any]]:
    """Check the runs with a version of the program; gives the exit code, and what is said of each run."""
    Path("app.py").write_text(VERSION.format(**{**SAME, **changes}), encoding="utf-8")
    command = [sys.executable, "-m", "durable_swarm", "check", "app:swarm", "--json", "--database", url]
    done = programs.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.stderr == ""
    return done.returncode, {found["run_id"]: found for found in json.loads(done.stdout)}


@pytest.mark.slow
def test_what_new_code_can_go_on_with(old: str) -> None:
    """Each change is told for what it is, and nothing is changed by the look."""
    code, runs = checked(old)
    assert (code, list(runs)) == (0, ["open", "queued"])
    assert [(run["status"], run["problem"], run["changed"]) for run in runs.values()] == [
        ("waiting", "", False),
        ("queued", "", False),
    ]
    code, runs = checked(old, prompt="New.", more=", added")
    assert (code, runs["open"]["changed"], runs["queued"]["changed"]) == (0, True, False)
    code, runs = checked(old, tool="pay_back")
    assert (code, runs["queued"]["problem"]) == (1, "")
    assert "no tool 'refund' any more" in runs["open"]["problem"]
    code, runs = checked(old, agent="Cashier")
    assert code == 1
    assert all("no agent named 'Checked clerk'" in run["problem"] for run in runs.values())


@pytest.mark.slow
def test_what_new_code_is_to_hold(old: str) -> None:
    """With changed_agents="hold" a changed agent counts, until a person has accepted it."""
    code, runs = checked(old, prompt="New.", policy="hold")
    assert (code, runs["open"]["held"], runs["open"]["changed"], runs["open"]["problem"]) == (1, True, True, "")
    assert runs["queued"]["held"] is False
    code, runs = checked(old, policy="hold")
    assert (code, runs["open"]["held"]) == (0, False)
    app = runpy.run_path("app.py")
    app["clerk"].instructions = "New."
    with DurableSwarm(ScriptedModel(["Never."]), database=old, changed_agents="hold") as swarm:
        swarm.recover()
        run = swarm.get("open")
        run.approve()
        wait_until(lambda: run.waits_for)
    with open_runs(old) as opened:
        opened.resume("open")
    code, runs = checked(old, prompt="New.", policy="hold")
    assert (code, runs["open"]["held"], runs["open"]["changed"]) == (0, False, True)


@pytest.mark.slow
def test_in_words(old: str) -> None:
    """Without --json each run has a line, and the last line sums up."""
    Path("app.py").write_text(VERSION.format(**SAME | {"tool": "pay_back", "prompt": "New."}), encoding="utf-8")
    command = [sys.executable, "-m", "durable_swarm", "check", "app:swarm", "--database", old]
    done = programs.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("open (waiting) cannot continue: agent 'Checked clerk' has no tool 'refund'")
    assert lines[1:] == ["queued (queued) continues", "2 unfinished, 1 of them cannot continue with this code."]
    assert done.stderr.startswith("Not checked: 1 unfinished of swarm 'other'")
    Path("app.py").write_text(VERSION.format(**SAME | {"prompt": "New.", "policy": "hold"}), encoding="utf-8")
    lines = programs.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    assert lines == [
        "open (waiting) is to be held: agent 'Checked clerk' has changed since it last answered",
        "queued (queued) continues",
        "2 unfinished, 0 of them cannot continue with this code, 1 to be held.",
    ]


def test_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no database yet, that is said."""
    Path("app.py").write_text(VERSION.format(**SAME), encoding="utf-8")
    command = [sys.executable, "-m", "durable_swarm", "check", "app:swarm"]
    done = programs.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "there is no database" in done.stderr
