"""A run whose process was killed: every view, on the terminal and in the console, says the same of it."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durable_swarm.cli.app import main
from tests.console.asking import ask
from tests.engine.helpers import Program

PROGRAM = """
    from pathlib import Path
    import sys, time
    from durable_swarm import Agent, DurableSwarm, tool
    from durable_swarm.testing import ScriptedModel

    def dig():
        Path("begun").touch()
        time.sleep(600)

    @tool(approval=True)
    def blast():
        return "Done."

    digger = Agent(name="Interrupted Digger", functions=[dig, blast])
    with DurableSwarm(ScriptedModel([[sys.argv[1]]]), database="sqlite:///dug.sqlite") as swarm:
        swarm.session("garden", digger).run("Dig.", run_id="dug")
"""
ON_TERMINAL = [("runs",), ("show", "dug"), ("sessions",), ("session", "garden")]
IN_CONSOLE = ["/runs", "/runs/dug", "/sessions", "/sessions/garden"]


def asks() -> bool:
    """Return True once the run has recorded a request."""
    if not Path("dug.sqlite").exists():
        return False
    with closing(sqlite3.connect("dug.sqlite")) as file:
        tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master")]
        return "durable_swarm_requests" in tables and any(file.execute("SELECT 1 FROM durable_swarm_requests"))


@pytest.mark.parametrize(
    ("call", "when", "status", "others", "progress"),
    [
        ("dig", Path("begun").exists, "interrupted", ("running", "waiting", "in progress"), "interrupted"),
        ("blast", asks, "waiting", ("running", "interrupted", "in progress"), "waits"),
    ],
)
def test_every_view_says_the_same_of_a_killed_run(
    call: str,
    when: Callable[[], bool],
    status: str,
    others: tuple[str, ...],
    progress: str,
    console: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lists and details of runs and sessions have one status for a run whose process is gone, and for its open call."""
    Program(PROGRAM).run_and_kill(when, call)
    app, seen = console("sqlite:///dug.sqlite"), {}
    for words in ON_TERMINAL:
        assert main([*words, "--database", "sqlite:///dug.sqlite"]) == 0
        seen[" ".join(words)] = capsys.readouterr().out
    for path in IN_CONSOLE:
        page = ask(app, path).text.partition("<main")[2]
        seen[path] = html.unescape(re.sub(r"<select.*?</select>|<[^>]+>", "", page, flags=re.DOTALL))
    for view, text in seen.items():
        assert status in text, (view, text)
        stated = text.replace("no running process", "")
        assert not [other for other in others if re.search(rf"\b{other}\b", stated)], (view, text)
    assert f"{progress} (repeated after a crash)" in seen["show dug"]
    gone = "no running process owns"
    for view in ("show dug", "session garden", "/runs/dug", "/sessions/garden"):
        assert (gone in seen[view]) == (status == "interrupted"), (view, seen[view])
