"""`durable-swarm run`: a program that was killed goes on when it is started again; one that ended begins anew."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys, time
from types import SimpleNamespace as Data

from swarm import Agent, Swarm


class Completions:
    def create(self, messages, **_):
        question, answers = messages[1]["content"], [m["content"] for m in messages if m["role"] == "tool"]
        if answers:
            reply = Data(role="assistant", content=f"{question}: {answers[-1]}", tool_calls=None)
        else:
            call = Data(id="call", function=Data(name="book", arguments='{"what": "%s"}' % question))
            reply = Data(role="assistant", content=None, tool_calls=[call])
        return Data(choices=[Data(message=reply)])


client = Swarm(Data(chat=Data(completions=Completions())))


def book(what):
    with open("effects", "a") as effects:
        effects.write(what + "\\n")
    while os.path.exists(f"hold {what}"):
        time.sleep(0.02)
    if os.path.exists(f"break {what}"):
        raise ValueError("sold out")
    return "booked"


agent = Agent(name="Travel", functions=[book])
"""

TWO_RUNS = """
for what in ("flight", "hotel"):
    print(client.run(agent, [{"role": "user", "content": what}]).messages[-1]["content"], flush=True)
"""

TOGETHER = """
import asyncio


async def main():
    asked = [client.run_async(agent, [{"role": "user", "content": what}]) for what in ("flight", "hotel", "flight")]
    print([response.messages[-1]["content"] for response in await asyncio.gather(*asked)])


asyncio.run(main())
"""


class Trip:
    """The program in a folder of its own, its effects, and ways to start, stop and hinder it."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder = folder
        (folder / "trip.py").write_text(PROGRAM + ending)

    @property
    def effects(self) -> list[str]:
        """What the tools did, in order."""
        path = self.folder / "effects"
        return path.read_text().split() if path.exists() else []

    def hinder(self, how: str, what: str) -> Path:
        """Make the booking of `what` "hold" or "break", as long as the file given back exists."""
        path = self.folder / f"{how} {what}"
        path.touch()
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program."""
        command = [sys.executable, "-m", "durable_swarm", "run", "trip.py", *arguments]
        pipe = subprocess.PIPE
        return programs.Program(command, cwd=self.folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Let the program come to its end, and give what it printed on stdout and stderr."""
        with self.start(*arguments) as running:
            out, err = running.communicate(timeout=200)
        assert running.returncode == code, err
        return out, err

    def kill(self, count: int, *arguments: str) -> None:
        """Start the program and kill it once there are `count` effects."""
        with self.start(*arguments) as running:
            self.wait(count, running)
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=PATIENCE)
        assert running.returncode == -signal.SIGKILL
        assert len(self.effects) == count

    def wait(self, count: int, running: subprocess.Popen[str]) -> None:
        """Wait until there are `count` effects."""
        deadline = time.monotonic() + PATIENCE
        while len(self.effects) < count and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)


EVALS = """
import pytest
from swarm import Agent, Swarm
from trip import agent, client


@pytest.mark.parametrize("what", ["flight", "hotel"])
def test_booked(what):
    assert client.run(agent, [{"role": "user", "content": what}]).messages[-1]["content"] == f"{what}: booked"
"""


def test_a_module_as_program(tmp_path: Path) -> None:
    """`run -m pytest` runs the tests of a Swarm program durably: killed, it continues, and arguments are pytest's."""
    trip = Trip(tmp_path, "")
    (tmp_path / "test_evals.py").write_text(EVALS)
    command = [sys.executable, "-m", "durable_swarm", "run", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    hold = trip.hinder("hold", "hotel")
    with programs.Program(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        trip.wait(2, running)
        running.kill()
        running.communicate(timeout=PATIENCE)
    hold.unlink()
    ended = programs.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
    assert trip.effects == ["flight", "hotel", "hotel"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "no_such_module"], "There is no module 'no_such_module' here"),
        ([], "Missing argument 'SCRIPT'"),
        (["no_such_script.py"], "no_such_script.py"),
        (["-m"], "Option '-m' requires an argument"),
    ],
)
def test_no_such_program(tmp_path: Path, words: list[str], said: str) -> None:
    """A program that is not there is wrong use: exit code 2, and one line that names it."""
    command = [sys.executable, "-m", "durable_swarm", "run", *words]
    ended = programs.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_a_killed_program_goes_on(tmp_path: Path) -> None:
    """Killed in its second run, a program repeats nothing of the first and the call in flight of the second."""
    trip = Trip(tmp_path, TWO_RUNS)
    hold = trip.hinder("hold", "hotel")
    trip.kill(2)
    hold.unlink()
    out, err = trip.run()
    assert out == "flight: booked\nhotel: booked\n"
    assert err == "Continuing where trip.py was interrupted.\n"
    assert trip.effects == ["flight", "hotel", "hotel"]


def test_a_program_that_ended_begins_afresh(tmp_path: Path) -> None:
    """A program that came to its end does everything again in its next start; other arguments make another program."""
    trip = Trip(tmp_path, TWO_RUNS)
    hold = trip.hinder("hold", "hotel")
    trip.kill(2, "--for", "Ann")
    hold.unlink()
    assert trip.run("--for", "Bob") == ("flight: booked\nhotel: booked\n", "")
    assert trip.run("--for", "Bob") == ("flight: booked\nhotel: booked\n", "")
    # Ann's second run is taken over by any program with its agent; how far it has come by now is a matter of luck.
    assert trip.run("--for", "Ann") == (
        "flight: booked\nhotel: booked\n",
        "Continuing where trip.py was interrupted.\n",
    )
    assert trip.effects.count("flight") == 3


def test_programs_at_the_same_time_share_nothing(tmp_path: Path) -> None:
    """A program that is started twice at once does everything twice: what a living process does is its own."""
    trip = Trip(tmp_path, TWO_RUNS)
    hold = trip.hinder("hold", "hotel")
    with trip.start() as first:
        trip.wait(2, first)
        with trip.start() as second:
            trip.wait(4, second)
            hold.unlink()
            assert second.communicate(timeout=PATIENCE) == ("flight: booked\nhotel: booked\n", "")
        assert first.communicate(timeout=PATIENCE) == ("flight: booked\nhotel: booked\n", "")
    assert trip.effects == ["flight", "hotel"] * 2


def test_a_failed_program_goes_on_after_resume(tmp_path: Path) -> None:
    """A tool's exception is one line with what to do; resumed and started again, the program goes on from that step."""
    trip = Trip(tmp_path, TWO_RUNS)
    broken = trip.hinder("break", "hotel")
    out, err = trip.run(code=1)
    assert (out, err.count("\n")) == ("flight: booked\n", 1)
    assert err.startswith("Error: trip.py (line ")
    assert "ValueError: sold out" in err
    resume = next(part for part in err.split("`") if part.startswith("durable-swarm resume"))
    broken.unlink()
    command = [sys.executable, "-m", "durable_swarm", *resume.split()[1:]]
    programs.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    assert trip.run()[0] == "flight: booked\nhotel: booked\n"
    assert trip.effects == ["flight", "hotel", "hotel"]


def test_a_program_waits_for_the_runs_it_took_over(tmp_path: Path) -> None:
    """A fork that was made from outside is executed beside what the program starts itself, and waited for."""
    trip = Trip(tmp_path, "client.run(agent, [{'role': 'user', 'content': 'flight'}], run_id=sys.argv[1])\nsys.exit(0)")
    trip.run("first")
    durable = [sys.executable, "-m", "durable_swarm"]
    fork = [*durable, "fork", "first", "--turn", "0", "--message", "hotel", "--id", "forked"]
    told = programs.run(fork, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=200).stdout
    assert "does whatever else it does when it starts" in told
    hold = trip.hinder("hold", "flight")
    with trip.start("second") as running:
        trip.wait(3, running)
        assert running.stderr is not None
        hold.unlink()
        _, err = running.communicate(timeout=200)
    assert (running.returncode, err) == (0, "")
    runs = programs.run([*durable, "runs"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=200)
    assert runs.stdout.count(" done ") == 3


def test_a_run_that_was_taken_over_and_fails_is_told(tmp_path: Path) -> None:
    """A run of an earlier start that fails in this one is told in one line; the program itself has ended well."""
    trip = Trip(tmp_path, "client.run(agent, [{'role': 'user', 'content': sys.argv[1]}], run_id=sys.argv[1])")
    broken = trip.hinder("break", "hotel")
    trip.run("hotel", code=1)
    resume = [sys.executable, "-m", "durable_swarm", "resume", "hotel"]
    programs.run(resume, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    _, err = trip.run("flight")
    assert broken.exists()
    assert err == ("Run hotel of an earlier start is not done: ValueError: sold out. See `durable-swarm show hotel`.\n")


def test_runs_at_the_same_time_find_themselves_again(tmp_path: Path) -> None:
    """Runs that an async program makes together, two of them alike, each go on as what they were."""
    trip = Trip(tmp_path, TOGETHER)
    hold = trip.hinder("hold", "hotel")
    trip.kill(3)
    hold.unlink()
    out, _ = trip.run()
    assert out == "['flight: booked', 'hotel: booked', 'flight: booked']\n"
    # Whether the flights' results were recorded before the kill is a matter of luck; that nothing began anew is not.
    assert trip.effects.count("hotel") == 2
    assert trip.effects.count("flight") <= 4


@pytest.mark.parametrize(
    ("ending", "code", "out", "err"),
    [
        ("import sys; print(sys.argv[1:], __name__); sys.exit(3)", 3, "['-x', '--json'] __main__\n", ""),
        ("import sys; sys.exit('no money')", 1, "", "no money\n"),
        ("import neighbour; print(neighbour.NAME)", 0, "next door\n", ""),
        (
            "1 / 0",
            1,
            "",
            "Error: trip.py (line 1): ZeroDivisionError: division by zero. --debug shows the traceback.\n",
        ),
        (
            "def f(:",
            1,
            "",
            "Error: trip.py: SyntaxError: invalid syntax (trip.py, line 1). --debug shows the traceback.\n",
        ),
    ],
)
def test_a_program_is_run_as_python_would(tmp_path: Path, ending: str, code: int, out: str, err: str) -> None:
    """Arguments, imports beside the script, `__main__` and exit codes are as in Python; errors are one line."""
    (tmp_path / "neighbour.py").write_text("NAME = 'next door'\n")
    (tmp_path / "trip.py").write_text(ending + "\n")
    command = [sys.executable, "-m", "durable_swarm", "run", "trip.py", "-x", "--json"]
    done = programs.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_errors_of_the_package_are_one_line(tmp_path: Path) -> None:
    """A run that failed in an earlier start is one line with its remedy; a wrong use is one line and code 2."""
    trip = Trip(tmp_path, "client.run(agent, [{'role': 'user', 'content': 'hotel'}], run_id='trip')")
    broken = trip.hinder("break", "hotel")
    assert "ValueError: sold out" in trip.run(code=1)[1]
    broken.unlink()
    _, err = trip.run(code=1)
    assert err.count("\n") == 1
    assert "RunFailed: run 'trip'" in err
    assert err.endswith(" Fix it, then `durable-swarm resume trip`.\n")
    trip = Trip(tmp_path, "client.run('agent', [])")
    assert trip.run(code=2)[1].startswith("Error: agent must be an Agent")


def test_ctrl_c_in_a_conversation(tmp_path: Path) -> None:
    """A program that talks with `run_demo_loop` ends with exit code 130 at Ctrl+C, after its one line."""
    talk = "run_demo_loop(agent, client=Data(chat=Data(completions=Completions())))"
    trip = Trip(tmp_path, f"from swarm.repl import run_demo_loop\n{talk}")
    with trip.start() as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("Starting Swarm CLI")
        prompt = ""
        while "User" not in prompt:
            prompt += running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, err) == (130, "")
    assert out.endswith("Start the program again to continue this conversation.\n")


STREAMING = """
from swarm import Agent, Swarm
from swarm.repl.repl import process_and_print_streaming_response as show
from durable_swarm.testing import ScriptedModel

model = ScriptedModel(["The trip is booked now"], pace=float(open("pace").read()))
agent = Agent(name="Travel")
response = show(Swarm(model).run(agent, [{"role": "user", "content": "Book"}], stream=True))
print(response.messages[-1]["content"])
"""


def test_a_program_that_streams_goes_on(tmp_path: Path) -> None:
    """Killed in the middle of a streamed reply and started again, a program has the whole reply, in the same run."""
    trip = Trip(tmp_path, "")
    (tmp_path / "trip.py").write_text(STREAMING)
    (tmp_path / "pace").write_text("0.4")
    with trip.start() as running:
        assert running.stdout is not None
        told = ""
        while not told.endswith("The trip"):
            told += running.stdout.read(1)
        running.kill()
    (tmp_path / "pace").write_text("0")
    out, err = trip.run()
    assert err == "Continuing where trip.py was interrupted.\n"
    assert out.splitlines()[-1] == "The trip is booked now"
    runs = [sys.executable, "-m", "durable_swarm", "runs"]
    listed = programs.run(runs, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=200).stdout
    assert listed.count("Travel") == 1
