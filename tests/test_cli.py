"""The command line: commands, options, exit codes, and errors of one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from durable_swarm import Agent, DurableSwarm, sleep
from durable_swarm.cli import main, render
from durable_swarm.testing import ScriptedModel, cut_off
from tests.support import programs
from tests.support.patience import PATIENCE
from tests.support.shell import Shell

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def answer(run_id: str, reply: str = "Hello", question: str = "Hi", agent: str = "Clerk") -> None:
    """Leave a finished run in the default database of the working directory."""
    with DurableSwarm(ScriptedModel([reply])) as swarm:
        swarm.run(Agent(name=agent), [{"role": "user", "content": question}], run_id=run_id)


def fail(run_id: str) -> Agent:
    """Leave a run whose tool raised, and give its agent."""

    def refund(item: str) -> str:
        raise ValueError("no stock")

    agent = Agent(name="Refunds", functions=[refund])
    with (
        DurableSwarm(ScriptedModel([[("refund", {"item": "hat"})]])) as swarm,
        pytest.raises(ValueError, match="stock"),
    ):
        swarm.run(agent, [{"role": "user", "content": "Refund"}], run_id=run_id)
    return agent


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "durable_swarm", *arguments]
    return programs.run(command, capture_output=True, text=True, timeout=200, check=False, **options)


def test_runs_as_text_and_as_json(shell: Shell) -> None:
    """`runs` lists what is there, newest first, as aligned text or as JSON, and can be narrowed."""
    answer("one")
    fail("two")
    lines = shell("runs").splitlines()
    assert lines[0].split() == ["ID", "STATUS", "AGENT", "STARTED", "CHANGED", "TOOK", "TURNS", "TOKENS", "WHY"]
    assert {tuple(line.split()[:3]) for line in lines[1:]} == {("one", "done", "Clerk"), ("two", "failed", "Refunds")}
    assert {run["id"]: run["status"] for run in json.loads(shell("runs", "--json"))} == {"one": "done", "two": "failed"}
    assert [run["id"] for run in json.loads(shell("runs", "--status", "failed", "--json"))] == ["two"]
    assert [run["id"] for run in json.loads(shell("runs", "--agent", "Clerk", "--json"))] == ["one"]
    assert len(json.loads(shell("runs", "--limit", "1", "--json"))) == 1
    assert shell("runs", "--status", "cancelled") == "No runs.\n"


def test_show_tells_the_story(shell: Shell) -> None:
    """`show` has the facts, the question, each step with its number and version, the error and the remedy."""
    fail("two")
    shown = shell("show", "two")
    for expected in (
        r"^run +two$",
        r"^status +failed$",
        r"^agent +Refunds$",
        r"^tokens +\d+ in 1 model call",
        r"^user: Refund$",
        r"^  1  model  Refunds  .*version [0-9a-f]{12}  → refund\(item=\"hat\"\)$",
        r"^  2  tool   refund  .*ValueError: no stock$",
        r"^Fix the cause, then: durable-swarm resume two$",
    ):
        assert re.search(expected, shown, re.MULTILINE), expected
    assert not CONTROL.search(shown)
    assert json.loads(shell("show", "tw", "--json"))["id"] == "two"


def test_show_marks_where_the_code_changed(shell: Shell) -> None:
    """Where an agent was changed in the middle of a run, `show` says from which step on."""
    agent = fail("two")
    shell("resume", "two")

    def refund(item: str) -> str:
        return "done"

    agent.instructions, agent.functions = "Say it nicely.", [refund]
    with DurableSwarm(ScriptedModel([[("refund", {"item": "hat"})], "Refunded"])) as swarm:
        swarm.get("two").result(timeout=PATIENCE)
    lines = shell("show", "two").splitlines()
    [mark] = [index for index, line in enumerate(lines) if "the code changed: Refunds was version" in line]
    assert lines[mark + 1].startswith("  3  model  Refunds")
    assert lines[mark + 1].endswith("Refunded")


def test_json_says_what_ended_a_run(shell: Shell) -> None:
    """`ended_by` of a run that is done is in `runs --json` and `show --json`; of any other it is null."""
    agent = Agent(name="Clerk")
    with DurableSwarm(ScriptedModel(["Hello", cut_off("Hel")])) as swarm:
        for run_id in ("whole", "cut"):
            swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id=run_id)
    fail("failed")
    ends = {"whole": "answer", "cut": "length", "failed": None}
    assert {run["id"]: run["ended_by"] for run in json.loads(shell("runs", "--json"))} == ends
    shown = {run_id: json.loads(shell("show", run_id, "--json")) for run_id in ends}
    assert {run_id: run["ended_by"] for run_id, run in shown.items()} == ends
    assert [shown[run_id]["steps"][0]["finish"] for run_id in ("whole", "cut")] == [None, "length"]


def test_a_sleep_is_shown_with_its_end(shell: Shell) -> None:
    """A sleep inside a tool is shown by the local time at which it ends, not by a number."""

    def wait() -> str:
        sleep(0.01)
        return "waited"

    with DurableSwarm(ScriptedModel([["wait"], "Done"])) as swarm:
        swarm.run(Agent(functions=[wait]), [{"role": "user", "content": "Wait"}], run_id="one")
    assert re.search(
        r"^  3  step     sleep [ ▏▎▍▌▋▊▉█]+until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", shell("show", "one"), re.MULTILINE
    )


def test_what_was_written_cannot_control_the_terminal(shell: Shell) -> None:
    """Escape sequences, line breaks and markup of models, users and agents are shown as harmless text."""
    nasty = "\x1b[2J\x1b]0;title\x07 [red]x[/red]\r\x9b31m\u202e\n\nend"
    answer("one", reply=nasty, question=nasty, agent=f"Clerk {nasty}")
    for shown in (shell("show", "one"), shell("runs"), shell("runs", "--json")):
        assert not CONTROL.search(shown)
        assert "\u202e" not in shown
    assert "[red]x[/red]" in shell("show", "one")


def test_colours_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    """In a pipe there are no escape sequences, unless FORCE_COLOR asks for them; in a terminal there are."""
    fail("two")
    for name in ("CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    for command in (("show", "two"), ("runs",), ("doctor",)):
        assert "\x1b" not in shell(*command)
    monkeypatch.setattr(
        render, "plain_console", lambda: Console(force_terminal=True, highlight=False, color_system="standard")
    )
    assert "\x1b[" in shell("show", "two")


def test_resume_names_what_goes_on(shell: Shell) -> None:
    """`resume` and `cancel` say what became of the run, and leave runs alone that they do not concern."""
    answer("one")
    fail("two")
    assert "when the program that defines agent 'Refunds' runs" in shell("resume", "two")
    assert re.search(r"^two +interrupted +Refunds ", shell("runs"), re.MULTILINE)
    [view] = json.loads(shell("runs", "--status", "running", "--json"))
    assert (view["id"], view["status"], view["idle"]) == ("two", "running", True)
    assert json.loads(shell("runs", "--status", "interrupted", "--json")) == [view]
    assert "It waits: no running process owns it" in shell("show", "two")
    assert shell("cancel", "two") == "Run two is cancelled.\n"
    assert shell("runs", "--status", "interrupted") == "No runs.\n"
    assert "durable-swarm resume two" in shell("show", "two")
    assert shell("cancel", "one") == "Run one has ended (done), and stays as it is.\n"
    assert shell("resume", "one") == "Run one is done; there is nothing to resume.\n"


def test_doctor(shell: Shell, tmp_path: Path) -> None:
    """`doctor` prints a line for each check, or JSON; its exit code is 1 if one fails."""
    answer("one")
    lines = shell("doctor").splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert any(re.match(r"ok +journal_mode +wal$", line) for line in lines)
    assert {"name": "integrity", "level": "ok", "text": "ok"} in json.loads(shell("doctor", "--json"))
    (tmp_path / "bad.sqlite").write_text("no database " * 100)
    assert main(["doctor", "--database", "sqlite:///bad.sqlite"]) == 1


@pytest.mark.parametrize("before", [True, False])
def test_options_before_and_after_the_command(shell: Shell, before: bool) -> None:
    """`--database` and `--debug` may stand before and after the command's name."""
    answer("one")
    Path("durable_swarm.sqlite").rename("other.sqlite")
    options = ("--database", "sqlite:///other.sqlite", "--debug")
    assert "one" in shell(*((*options, "runs") if before else ("runs", *options)))


def test_the_database_of_the_environment(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--database` the database is that of the environment."""
    monkeypatch.setenv("DURABLE_SWARM_DATABASE_URL", "sqlite:///elsewhere.sqlite")
    assert "elsewhere.sqlite" in shell("runs", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["runs"], 1, "there is no database"),
        (["show", "x"], 1, "run a program with DurableSwarm there"),
        (["runs", "--database", "mysql://host/name"], 2, "use sqlite:///FILE or postgresql://"),
        (["runs", "--database", "nonsense"], 2, "is not given as a URL"),
        (["runs", "--database", "postgresql://u:secret@127.0.0.1:9/x"], 2, "Check that the server runs"),
        (["run", "none.py"], 2, "does not exist"),
        (["runs", "--nope"], 2, "durable-swarm runs --help"),
        (["runs", "--limit", "0"], 2, "--limit"),
        (["runs", "--status", "odd"], 2, "cancelled"),
        (["show"], 2, "ID"),
        (["nope"], 2, "durable-swarm --help"),
    ],
)
def test_errors(shell: Shell, arguments: list[str], code: int, text: str) -> None:
    """An error is one line that says what to do, with the exit code of its kind, and holds no password."""
    shown = shell(*arguments, code=code)
    assert shown.startswith("Error: ")
    assert text in shown
    assert "secret" not in shown


def test_unknown_run(shell: Shell) -> None:
    """A run that is not there is told so, with exit code 1, by every command that takes an id."""
    answer("one")
    for command in ("show", "resume", "cancel"):
        assert "there is no run 'two'" in shell(command, "two", code=1)


def test_a_traceback_needs_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--debug`, and only then, an error shows its traceback."""
    answer("one")
    assert main(["show", "two"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["show", "two", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has a help text, for itself and for each of its options; without a command, help is shown."""
    for command in ([], ["demo"], ["demo", "refund"], ["run"], ["runs"], ["show"], ["resume"], ["cancel"], ["doctor"]):
        assert main([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--database URL" in shown
        assert "--debug" in shown
        assert not re.search(r"^  --\S+( [A-Z]+)?$(?!\n {6,}\S)", shown, re.MULTILINE)
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("Usage: durable-swarm")


def test_version(shell: Shell) -> None:
    """`--version` names the package."""
    assert shell("--version").startswith("durable-swarm ")


def test_as_a_process() -> None:
    """`python -m durable_swarm` ends with the same exit codes and the same single line on stderr."""
    done = process("show", "x")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    done = process("runs", "--nope")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    answer("one")
    done = process("show", "one")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_nobody_reads() -> None:
    """A reader that stops early, and a terminal that knows ASCII only, are no errors worth a traceback."""
    answer("one", reply="¡Hola! 👋")
    done = process("show", "one", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    command = f"{sys.executable} -m durable_swarm show one --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=200, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_ctrl_c(tmp_path: Path) -> None:
    """Ctrl+C ends a program with exit code 130 and one line, and its next start goes on."""
    script = tmp_path / "slow.py"
    script.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "durable_swarm", "run", str(script)]
    with programs.Program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert err == "Interrupted. The same command continues where this stopped.\n"


def test_nobody_reads_on() -> None:
    """Where whoever reads the output has gone, a command ends, and says nothing more."""
    with DurableSwarm(ScriptedModel(["Done."] * 2)) as swarm:
        for _ in range(2):
            swarm.run(Agent(name="Piped Clerk"), [{"role": "user", "content": "Hi"}])
    for arguments in (["runs"], ["runs", "--json"], ["doctor"]):
        command = [sys.executable, "-u", "-m", "durable_swarm", *arguments]
        with programs.Program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            told = process.stderr.read()
            code = process.wait(60)
        assert (code, told) == (0, "")


def test_a_queued_run_is_shown_with_what_it_waits_for(shell: Shell) -> None:
    """`show` names the swarm and that a worker is missing, `doctor` since when."""
    with DurableSwarm(ScriptedModel([]), name="shop") as swarm:
        swarm.enqueue("Clerk", [{"role": "user", "content": "Hi"}], run_id="r")
    shown = shell("show", "r")
    assert re.search(r"^swarm +shop$", shown, re.MULTILINE)
    assert re.search(r"^waits for +a worker$", shown, re.MULTILINE)
    assert "1 of swarm 'shop', the oldest for" in shell("doctor")
