"""What stays open in a terminal: `runs --watch`, `inbox --watch`, `watch --all`, `top`; and `watch` without an id."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.cli import main
from durable_swarm.service import Query, open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.helpers import user
from tests.support import programs
from tests.support.asking import asking, leave
from tests.support.patience import PATIENCE
from tests.support.terminal import Terminal

COMMAND = [sys.executable, "-m", "durable_swarm"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database with one finished run."""
    found = f"sqlite:///{tmp_path}/runs.sqlite"
    say(found, "first")
    return found


def look_up_an_order(number: str) -> str:
    """Look an order up."""
    return f"Order {number} is on its way. " * 5


def say(url: str, run_id: str) -> None:
    """Leave a finished run."""
    with DurableSwarm(ScriptedModel(["Hello"]), database=url) as swarm:
        clerk = Agent(name="Clerk")
        swarm.run(clerk, user(), run_id=run_id)


@contextmanager
def piped(url: str, *words: str) -> Iterator[Any]:
    """Have a command write into a pipe; yield a function that returns its next line of JSON.

    `watch --all` is there once it has said so.
    """
    command = [*COMMAND, *words, "--json", "--database", url]
    with programs.Program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "--all" in words:
                assert process.stderr.readline().startswith("Watching all runs.")
            yield functools.partial(_line, process.stdout)
        finally:
            process.kill()


def _line(stream: IO[str]) -> Any:
    return json.loads(stream.readline())


@pytest.mark.slow
def test_a_list_stays_open(url: str) -> None:
    """`runs --watch` shows a run that begins while it is open, and leaves the terminal as it was."""
    with Terminal([*COMMAND, "runs", "--watch", "--database", url], {"COLUMNS": "120"}) as terminal:
        terminal.read_until("first")
        say(url, "second")
        terminal.read_until("second")
        terminal.type("q")
        output, code = terminal.end()
    assert code == 0
    assert "\x1b[?1049l" in output


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_steps_fit_the_terminal(tmp_path: Path, width: int) -> None:
    """Each step of `show` is one line of the terminal, whatever stands beside its outcome."""
    url = f"sqlite:///{tmp_path}/wide.sqlite"
    agent = Agent(name="Shop Refunds", functions=[look_up_an_order])
    replies = [[call("look_up_an_order", number="A" * 80)], "It is on its way, and will be with you on Tuesday. " * 3]
    with DurableSwarm(ScriptedModel(replies), database=url) as swarm:
        swarm.run(agent, user("Where is it?"), run_id="wide")
    with Terminal([*COMMAND, "show", "wide", "--database", url], {"COLUMNS": f"{width}"}) as terminal:
        output, code = terminal.end()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    steps = [line for line in lines if re.match(r" *[0-9]+  (model|tool) ", line)]
    assert (code, len(steps)) == (0, 3)
    assert [line for line in steps if len(line) > width] == []


@pytest.mark.slow
def test_a_list_in_a_pipe_has_a_line_for_each_change(url: str) -> None:
    """`runs --watch --json` writes the runs, then each that is new or has changed."""
    with piped(url, "runs", "--watch", "0.2") as read:
        assert read()["id"] == "first"
        say(url, "second")
        assert read()["id"] == "second"


@pytest.mark.slow
def test_all_runs_in_one_feed(url: str) -> None:
    """`watch --all` has every event of the runs that begin after it, each with its run, and none of before."""
    leave("early", "choose", database=url)
    with piped(url, "watch", "--all") as read, asking("late", "choose", database=url):
        found = [read()]
        while found[-1]["type"] != "run.waiting" or found[-1]["run_id"] != "late":
            found.append(read())
    late = [event for event in found if event["run_id"] == "late"]
    assert [event["seq"] for event in late] == list(range(1, len(late) + 1))
    assert late[0]["type"] == "run.started"
    assert {event["run_id"] for event in found} <= {"late", "early"}
    assert "run.started" not in [event["type"] for event in found if event["run_id"] == "early"]


@pytest.mark.slow
def test_the_inbox_stays_open(url: str) -> None:
    """`inbox --watch` rings for a request that is opened while it is open."""
    with Terminal([*COMMAND, "inbox", "--watch", "--database", url]) as terminal:
        terminal.read_until("No open requests.")
        with asking("asks", "choose", database=url):
            terminal.read_until("Which colour?")
        terminal.read_until("\a")
        terminal.type("q")
        assert terminal.end()[1] == 0


def test_watch_without_an_id(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an id it is the newest unfinished run; if all have ended, a script is told to name one."""
    assert main(["watch", "--database", url]) == 1
    assert "No run is unfinished. Name the run" in capsys.readouterr().err
    assert main(["watch", "--all", "first", "--database", url]) == 2
    with DurableSwarm(ScriptedModel(["Hello"]), database=url) as swarm:
        swarm.enqueue("Nobody", user(), run_id="waits")
    with open_runs(url) as runs:
        runs.cancel("waits")
        assert [view.id for view in runs.list(Query("cancelled"))] == ["waits"]


def test_one_frame_in_a_pipe(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`top` in a pipe is one frame: what has ended, the queues, the runs, and the oldest requests."""
    with DurableSwarm(ScriptedModel(["Hello"]), database=url, name="shop") as swarm:
        swarm.enqueue("Nobody", user(), run_id="waits")
    leave("asks", "choose", database=url)
    assert main(["top", "--database", url]) == 0
    out = capsys.readouterr().out
    assert "Within the last hour: 1 done" in out
    assert "queue shop: 1 waiting, the oldest for" in out
    assert "no worker serves it" in out
    assert "Which colour?" in out
    assert all(run in out for run in ("first", "waits", "asks"))


@pytest.mark.slow
def test_top_decides_and_cancels(url: str) -> None:
    """Approving by a key shows the arguments and asks first; who did it is recorded."""
    with asking("asks", "refund", database=url) as run:
        with Terminal(
            [*COMMAND, "top", "--by", "ana", "--database", url], {"COLUMNS": "140", "LINES": "40"}
        ) as terminal:
            terminal.read_until("asks")
            terminal.type("a")
            terminal.read_until("Approve it?")
            assert "refund(amount=250)" in terminal.output
            terminal.type("y")
            terminal.read_until("is approved.")
            terminal.type("q")
            assert terminal.end()[1] == 0
        assert run.result(timeout=PATIENCE).messages[-1]["content"] == "Done."
        assert run.requests() == []
    with open_runs(url) as runs:
        assert runs.show("asks").requests[0].answered_by == "ana"
