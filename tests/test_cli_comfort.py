"""The command line is comfortable: a shell completes it, colours obey the environment, long work shows progress."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_swarm import Agent, DurableSwarm, ask_human, tool
from durable_swarm.cli import main
from durable_swarm.testing import ScriptedModel, call, crash_test
from tests.support import programs
from tests.support.shell import Shell
from tests.support.terminal import Terminal


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line, called in this process."""
    return Shell(capsys)


def ask() -> str:
    """Ask somebody."""
    return ask_human("Now?")


@tool(name="ask")
def plain() -> str:
    """Answer at once."""
    return "Yes."


@pytest.fixture
def runs() -> None:
    """Two runs, one of which has asked a person."""
    clerk = Agent(name="Comfortable clerk", functions=[ask])
    with DurableSwarm(ScriptedModel(["Hello", [call("ask")]])) as swarm:
        swarm.run(clerk, [{"role": "user", "content": "Hi"}], run_id="refund-1")
        run = swarm.start(clerk, [{"role": "user", "content": "Ask"}], run_id="gift-2")
        next(event for event in run.events() if event.type == "run.waiting")


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """A function that returns what a shell offers for the last of its words."""

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_DURABLE_SWARM_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["durable-swarm", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            main([])
        return [line.partition(",")[2] for line in capsys.readouterr().out.split()]

    return complete


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell(name: str, shell: Shell) -> None:
    """`completion` prints a script that asks the program itself."""
    script = shell("completion", name)
    assert "_DURABLE_SWARM_COMPLETE" in script
    if name == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.usefixtures("runs")
def test_ids_are_completed(offered: Callable[..., list[str]]) -> None:
    """A shell completes commands, the ids of runs, and those of open requests."""
    assert offered("sho") == ["show"]
    assert sorted(offered("show", "")) == ["gift-2", "refund-1"]
    assert offered("resume", "ref") == ["refund-1"]
    [request] = offered("approve", "")
    assert request.startswith("gift-2/")
    assert offered("--database", "sqlite:///none.sqlite", "show", "") == []


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("settings", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False)]
)
def test_colours_obey_the_environment(
    settings: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    """A pipe gets colours only if `FORCE_COLOR` asks for them; the text is the same."""
    # How long a run that has not ended has taken so far differs, and the widths of the columns with it.
    varies = re.compile(r"\x1b\[[\d;]*m|(\d+ min )?[\d.]+ m?s(?= )")
    plain = shell("runs")
    for name, value in {"TERM": "xterm-256color", **settings}.items():
        monkeypatch.setenv(name, value)
    shown = shell("runs")
    assert ("\x1b[" in shown) is coloured
    assert varies.sub("", shown).split() == varies.sub("", plain).split()


@pytest.mark.usefixtures("runs")
def test_a_terminal_without_unicode_shows_plain_signs() -> None:
    """Bars and arrows of a listing have a form in ASCII; other letters that cannot be shown are question marks."""
    with DurableSwarm(ScriptedModel([[call("ask")], "ü"])) as swarm:
        agent = Agent(name="Plain clerk", functions=[plain])
        swarm.run(agent, [{"role": "user", "content": "Größe"}], run_id="plain-1")
    command = [sys.executable, "-m", "durable_swarm", "show", "plain-1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = programs.run(command, env=environment, check=True, capture_output=True).stdout.decode("ascii")
    assert re.search(r"model  Plain clerk +\d+ ms +#+ .* > ask\(\)", shown), shown
    assert "user: Gr??e" in shown


LONG = [
    (["export", "refund-1", "-o", "run.json"], "Exporting the run", "Run refund-1 is in run.json."),
    (["import", "run.json", "--database", "sqlite:///new.sqlite"], "Importing the run", "Run refund-1 (done) is there"),
    (["gc", "--older-than", "1m", "--dry-run"], "Counting runs", "Would delete 0 runs"),
    (["gc", "--older-than", "1m"], "Deleting runs", "Deleted 0 runs"),
]


@pytest.mark.usefixtures("runs")
def test_long_work_shows_progress_on_a_terminal_alone(shell: Shell) -> None:
    """`export`, `import` and `gc` say on a terminal what they do, until it is done; a pipe gets the result alone."""
    for arguments, working, result in LONG:
        terminal = Terminal([sys.executable, "-m", "durable_swarm", *arguments], {"TERM": "xterm-256color"})
        output, code = terminal.end()
        assert code == 0
        assert working in output, output
        assert output.index(working) < output.index(result)
        assert working not in shell(*arguments)


def test_a_crash_test_shows_progress_on_a_terminal(tmp_path: Path) -> None:
    """A crash test in a script counts its kills on a terminal."""
    script = tmp_path / "script.py"
    script.write_text("""
from durable_swarm.testing import crash_test
from tests.test_cli_comfort import greet

if __name__ == "__main__":
    print(crash_test(greet, only=[1]))
""")
    environment = {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
    output, code = Terminal([sys.executable, str(script)], environment).end()
    assert code == 0
    assert "Crash test of greet" in output, output
    assert "2/2" in output


def greet() -> str:
    """Greet somebody: the scenario of a crash test."""
    agent = Agent(name="Greeter of a crash test")
    with DurableSwarm(ScriptedModel(["Hello"])) as swarm:
        return str(swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="one").messages[-1]["content"])


def test_a_crash_test_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A crash test logs its progress."""
    caplog.set_level(logging.INFO, "durable_swarm")
    report = crash_test(greet, only=[1, 2])
    told = [record.getMessage() for record in caplog.records if "kills tried" in record.getMessage()]
    assert told[-1].endswith(f"{report.kills} of 4 kills tried")
