"""`durable-swarm watch`: what happened in a run, and what happens in it, told from another process."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, LimitReached, Limits, emit, sleep
from durable_swarm.cli import main
from durable_swarm.encryption import EncryptionCodec
from durable_swarm.testing import ScriptedModel, call, http_error
from tests.support import programs
from tests.support.patience import PATIENCE
from tests.support.shell import Shell
from tests.support.terminal import Terminal

WATCH = [sys.executable, "-m", "durable_swarm", "watch"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HOSTILE = "One\nTwo \x1b[2J\x1b]0;title\x07 \u202ethree\r\nfour"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]

PROGRAM = """
import os, sys, time
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

def wait():
    while os.path.exists("hold"):
        time.sleep(0.02)
    return "waited"

def reply(request):
    return "All is well now" if request["messages"][-1]["role"] == "tool" else ["wait"]

with DurableSwarm(ScriptedModel(reply, pace=float(sys.argv[1]))) as swarm:
    for item in swarm.run(Agent(name="Clerk", functions=[wait]), [{"role": "user", "content": "Hi"}], run_id="live",
                          stream=True):
        pass
"""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def refund(item: str) -> str:
    """Refund an item."""
    emit(f"looking for \x1b[31m{item}")
    emit({"percent": 50})
    return f"Refunded {item}.\nThank you."


def hand_over() -> Agent:
    """Hand over."""
    return Agent(name="Sales")


def run(run_id: str, replies: list[Any], *functions: Any, codec: Any = None) -> None:
    """Leave a streamed run in the default database of the working directory."""
    with DurableSwarm(ScriptedModel(replies), codec=codec) as swarm:
        for _ in swarm.run(Agent(name="Clerk", functions=list(functions)), QUESTION, run_id=run_id, stream=True):
            pass


def program(pace: float = 0.0) -> subprocess.Popen[str]:
    """Start the program that makes the run `live`; its tool ends when the file `hold` is gone."""
    return programs.Program([sys.executable, "-c", PROGRAM, str(pace)], text=True)


def wait_for(command: list[str], text: str) -> None:
    """Wait until a command prints the text."""
    deadline = time.monotonic() + PATIENCE
    while text not in programs.run(command, capture_output=True, text=True, check=False, timeout=200).stdout:
        assert time.monotonic() < deadline


def wait_for_tool() -> None:
    """Wait until the program's tool is under way."""
    wait_for([*WATCH[:-1], "show", "live"], "in progress")


def test_a_run_that_has_ended(shell: Shell) -> None:
    """All of a finished run is told: what was said in its lines, calls, progress, results, handoffs and the end."""
    run("one", [[call("refund", item="hat")], ["hand_over"], "It is\ndone."], refund, hand_over)
    assert shell("watch", "o") == (
        'Clerk: refund(item="hat")\n'
        "  refund … looking for \\x1b[31mhat\n"
        '  refund … {"percent": 50}\n'
        "  refund → Refunded hat. Thank you.\n"
        "Clerk: hand_over()\n"
        '  hand_over → {"assistant": "Sales"}\n'
        "Clerk → Sales\n"
        "Sales: It is\ndone.\n"
        "done\n"
    )


def test_as_json(shell: Shell) -> None:
    """As JSON each event is one line; `--after` leaves out those that were read, up to all of them."""
    run("one", [["refund"], "Hello"], refund)
    events = [json.loads(line) for line in shell("watch", "one", "--json").splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert all(list(event) == ["seq", "type", "data", "time"] for event in events)
    assert all(datetime.fromisoformat(event["time"]).tzinfo is not None for event in events)
    assert events[0]["type"] == "run.started"
    assert events[-1] == events[-1] | {"type": "run.finished", "data": {"agent": "Clerk", "ended_by": "answer"}}
    rest = shell("watch", "one", "--json", "--after", "3").splitlines()
    assert [json.loads(line) for line in rest] == events[3:]
    assert shell("watch", "one", "--after", str(len(events))) == ""


def test_a_run_that_failed(capsys: pytest.CaptureFixture[str], shell: Shell) -> None:
    """A failed run is told with its error and the command that lets it go on; the exit code is 1, with --after too."""

    def broken() -> str:
        raise ValueError("no \x1b[2Jstock")

    with pytest.raises(ValueError, match="stock"):
        run("two", [["broken"]], broken)
    remedy = "Fix the cause, then: durable-swarm resume two\n"
    told = f"Clerk: broken()\nfailed: ValueError: no \\x1b[2Jstock\n{remedy}"
    done = programs.run([*WATCH, "two"], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (1, told, "")
    done = programs.run([*WATCH, "two", "--after", "50"], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (1, remedy, "")


def test_a_run_that_was_cancelled() -> None:
    """A cancelled run is told as such, with the command that lets it go on; the exit code is 1."""
    with DurableSwarm(ScriptedModel([["doze"]])) as swarm:

        def doze() -> None:
            swarm.get("three").cancel()
            sleep(0.01)

        started = swarm.start(Agent(name="Clerk", functions=[doze]), QUESTION, run_id="three")
        deadline = time.monotonic() + PATIENCE
        while started.status != "cancelled" and time.monotonic() < deadline:
            time.sleep(0.02)
    done = programs.run([*WATCH, "three"], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("cancelled\nTo continue it: durable-swarm resume three\n")


def test_wrong_use(shell: Shell) -> None:
    """An unknown run, and a number that is none, are one line each, with exit codes 1 and 2."""
    run("one", ["Hello"])
    assert "there is no run 'other'" in shell("watch", "other", code=1)
    assert "--after" in shell("watch", "one", "--after", "-1", code=2)


def test_a_sealed_run(shell: Shell) -> None:
    """A run whose keys are not here is one line that says what would open it."""
    run("sealed", ["Hello"], codec=EncryptionCodec(base64.b64encode(bytes(32)).decode()))
    error = shell("watch", "sealed", code=2)
    assert "cannot be read here" in error
    assert "DURABLE_SWARM_ENCRYPTION_KEYS" in error


def test_hostile_text(shell: Shell) -> None:
    """What an agent says keeps its lines, and no character that controls a terminal."""
    run("one", [HOSTILE])
    told = shell("watch", "one")
    assert told == "Clerk: One\nTwo \\x1b[2J\\x1b]0;title\\x07 \\u202ethree\nfour\ndone\n"
    assert not CONTROL.search(told)


@pytest.mark.slow
def test_live_from_another_process() -> None:
    """A run of another process is told while it goes on: the tool before it returns, the text before it is whole."""
    Path("hold").touch()
    with program(pace=0.3) as running:
        wait_for_tool()
        with Terminal([*WATCH, "live"], {"TERM": "xterm"}) as terminal:
            terminal.read_until("wait")
            assert "waited" not in terminal.output
            Path("hold").unlink()
            terminal.read_until("All is")
            assert "now" not in terminal.output
            output, code = terminal.end()
        running.wait(timeout=200)
    assert code == 0
    assert "\x1b[94mClerk: \x1b[0mAll is well now\n" in output
    assert "done" in output.splitlines()[-1]


@pytest.mark.slow
def test_killed_and_continued() -> None:
    """A run that nobody executes is said to be so, once; taken up by another process, it is followed to its end."""
    Path("hold").touch()
    with program() as first:
        wait_for_tool()
        with programs.Program([*WATCH, "live"], stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stdout.readline() == "Clerk: wait()\n"
            first.kill()
            first.wait(timeout=30)
            line = watching.stdout.readline()
            assert line.startswith("Run live waits: no running process owns it; start a program that defines")
            time.sleep(1.5)
            Path("hold").unlink()
            with program() as second:
                out, _ = watching.communicate(timeout=200)
                second.wait(timeout=200)
    taken, _, rest = out.partition("\n")
    assert re.fullmatch(r"process process-\S+ died; it continues in process-\S+", taken)
    assert (watching.returncode, rest) == (0, "  wait → waited\nClerk: All is well now\ndone\n")


@pytest.mark.slow
def test_a_lost_reply_begins_anew() -> None:
    """Text that was told and lost in a crash is told to be void, and what comes instead begins on a line of its own."""
    Path("hold").touch()
    with program(pace=2) as first:  # Seconds for the watcher to tell the first word before the reply has ended.
        wait_for_tool()
        with programs.Program([*WATCH, "live"], stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            Path("hold").unlink()
            told = ""
            while not told.endswith("Clerk: All"):
                told += watching.stdout.read(1)
            first.kill()
            first.wait(timeout=30)
            with program() as second:
                out, _ = watching.communicate(timeout=200)
                second.wait(timeout=200)
    assert watching.returncode == 0
    assert re.fullmatch(r".*\n— the reply begins anew —\nClerk: All is well now\ndone\n", out, re.DOTALL), out


@pytest.mark.slow
def test_ctrl_c() -> None:
    """Ctrl+C ends the watching with 130 and a line that says how to go on; the run is not touched."""
    Path("hold").touch()
    with program() as running:
        wait_for_tool()
        pipe = subprocess.PIPE
        with programs.Program([*WATCH, "live"], stdout=pipe, stderr=pipe, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stdout.readline() == "Clerk: wait()\n"
            time.sleep(0.3)  # The line is read before the watcher has noted that it told it.
            watching.send_signal(signal.SIGINT)
            out, err = watching.communicate(timeout=PATIENCE)
        assert (watching.returncode, out) == (130, "")
        assert err.startswith("No longer watching")
        assert err.endswith("durable-swarm watch live --after 3\n")
        assert err.count("\n") == 1
        Path("hold").unlink()
        assert running.wait(timeout=200) == 0


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_closed_pipe(form: list[str]) -> None:
    """A reader that has read enough ends the watching quietly."""
    run("one", [["refund"]] * 3 + ["Hello"], refund)
    command = [*WATCH, "one", *form]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = programs.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")


def test_model_calls_that_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """A model call that waits, for its provider or at a limit, says so with the agent's name."""
    agent = Agent(name="Waiting clerk", functions=[refund])
    model = ScriptedModel([*[http_error(503)] * 3, [call("refund", item="hat")]])
    with DurableSwarm(model, provider_patience=60) as swarm:
        run = swarm.start(agent, QUESTION, run_id="waits", limits=Limits(requests=1, on_limit="ask"))
        while not (asked := run.requests()):
            time.sleep(0.02)
        run.reject("enough", asked[0].id, by="Ann")
        with pytest.raises(LimitReached):
            run.result()
    assert main(["watch", "waits"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"  Waiting clerk waits for the provider of model gpt-4o: .*503", line) for line in lines)
    assert any(line.startswith("  Waiting clerk asks: ") for line in lines)
    assert "  Waiting clerk rejected by Ann" in lines
