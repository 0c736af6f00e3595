"""The refund demo as its user sees it: in a terminal, killed at different moments, started again."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import durable_swarm
from durable_swarm import ConfigurationError
from durable_swarm.demos import refund, refund_agents
from durable_swarm.testing import http_error, serve_scripted
from tests.support import programs
from tests.support.terminal import Terminal

PROGRAM = (
    "import sys; from durable_swarm.demos.refund import main; "
    "name, database, model = (word or None for word in sys.argv[1:]); sys.exit(main(name, database, model))"
)
TRANSCRIPT = """
Transcript
User: Hi, I'm {name}. I want to refund item 99, it is too expensive. And can I get a discount?
Triage Agent: transfer_to_refunds()
  result: {{"assistant": "Refunds Agent"}}
Refunds Agent: process_refund(item_id="99", reason="it is too expensive")
  result: Refunded item 99 to {name}.
Refunds Agent: apply_discount()
  result: Applied discount of 11%
Refunds Agent: {name}, item 99 is refunded, and you have a discount of 11%. Have a nice day!
"""
COLOURS = ("\x1b[1m", "\x1b[31m", "\x1b[1;31m", "\x1b[90m", "\x1b[94m", "\x1b[95m", "\x1b[32m", "\x1b[0m")


def command(name: str = "", database: str = "", model: str = "") -> list[str]:
    """Give the command that runs the demo."""
    return [sys.executable, "-c", PROGRAM, name, database, model]


def in_terminal(seconds: float = 0.05, **arguments: str) -> Terminal:
    """Start the demo in a terminal, with steps of so many seconds."""
    return Terminal(command(**arguments), {"DURABLE_SWARM_DEMO_SECONDS": str(seconds), "TERM": "xterm"})


def piped(env: dict[str, str] | None = None, **arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end without a terminal, with short steps."""
    environment = {**os.environ, "DURABLE_SWARM_DEMO_SECONDS": "0.02", **(env or {})}
    return programs.run(
        command(**arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )


def plain(text: str) -> str:
    """Take the colours out."""
    for colour in COLOURS:
        text = text.replace(colour, "")
    return text


def assert_each_step_once(output: str) -> None:
    """Check that every step was finished, and none twice."""
    for number in range(1, 6):
        assert output.count(f"step {number} of 5 ... done") == 1, output
    assert output.count("Applying discount ... done") == 1, output


@pytest.mark.parametrize(
    ("moment", "place"),
    [
        ("step 2 of 5 ...", "step 2 of the refund"),
        ("step 4 of 5 ...", "step 4 of the refund"),
        ("Applying discount ...", "the discount"),
    ],
)
def test_killed_and_started_again(moment: str, place: str) -> None:
    """After kill -9 the demo goes on by itself at the step that was interrupted, and repeats none that was finished."""
    with in_terminal(0.3) as first:
        first.read_until("What is your name?")
        first.type("Zoë\n")
        first.read_until(moment)
        first.kill(signal.SIGKILL)
        before, code = first.end()
        assert code == -signal.SIGKILL
    with in_terminal() as second:
        after, code = second.end()
    assert code == 0, after
    assert f"from {place};" in after
    assert plain(after).count("before the crash") == before.count("... done") + 1 + ("Applying" in moment)
    assert "✓ Triage Agent → Refunds Agent  before the crash" in plain(after)
    assert "✕ the process died" in plain(after)
    assert "your name" not in after
    assert_each_step_once(before + after)
    assert TRANSCRIPT.format(name="Zoë") in plain(after)
    assert plain(after) != after


def test_interrupted_with_ctrl_c() -> None:
    """Ctrl+C ends the demo with 130 and one line that says how to go on, in a continued run too."""
    outputs = []
    for moment in ("step 2 of 5 ...", "step 4 of 5 ..."):
        with in_terminal(0.3, name="Ann") as terminal:
            terminal.read_until(moment)
            terminal.kill(signal.SIGINT)
            output, code = terminal.end()
        assert code == 130, output
        last = output.splitlines()[-1]
        assert last.startswith("Interrupted. Nothing is lost"), output
        assert last.endswith("-m durable_swarm demo refund"), output
        outputs.append(output)
    final = piped()
    assert (final.returncode, final.stderr) == (0, "")
    assert_each_step_once("".join([*outputs, final.stdout]))
    assert TRANSCRIPT.format(name="Ann") in final.stdout


def test_without_a_terminal() -> None:
    """Without a terminal nobody is asked: the user is Max, the model is said to be a script, nothing is coloured."""
    done = piped()
    assert (done.returncode, done.stderr) == (0, "")
    greeting, model, *_ = done.stdout.splitlines()
    assert greeting.startswith("Connecting to Durable Refund Agent")
    assert model == "There is no OPENAI_API_KEY, so a scripted model answers, offline."
    assert_each_step_once(done.stdout)
    assert TRANSCRIPT.format(name="Max") in done.stdout


def test_a_living_demo_is_left_alone() -> None:
    """A demo in a second terminal makes a run of its own while the first lives."""
    with in_terminal(0.4, name="Ann") as first:
        first.read_until("step 2 of 5 ...")
        second = piped(name="Ben")
        output, code = first.end()
    assert (code, second.returncode) == (0, 0)
    assert "Continuing" not in second.stdout
    for name, printed in (("Ann", plain(output)), ("Ben", second.stdout)):
        assert_each_step_once(printed)
        assert TRANSCRIPT.format(name=name) in printed


def test_a_model_is_asked_and_a_refused_key_is_no_obstacle(tmp_path: Path) -> None:
    """With a key that model answers; a refused key is reported in one line, and the next start continues the run."""
    database = f"sqlite:///{tmp_path}/other.sqlite"
    with serve_scripted(refund.scripted_reply) as provider:
        key = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": provider.base_url}
        provider.inject(http_error(401, "wrong key"))
        failed = piped(key, name="Ann", database=database)
        worked = piped(key, name="Ben", database=database, model="my-model")
    assert failed.returncode == 1
    assert "wrong key" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Traceback" not in failed.stdout
    assert (worked.returncode, worked.stderr) == (0, "")
    assert f"The model is gpt-4o, at {provider.base_url}." in worked.stdout
    assert "the demo continues this run" in failed.stderr
    assert "Continuing run" in worked.stdout
    assert TRANSCRIPT.format(name="Ann") in worked.stdout
    assert f"--database {database}" in worked.stdout.splitlines()[-1]


def test_wrong_use() -> None:
    """A model without a key is refused before anything is done."""
    with pytest.raises(ConfigurationError, match="--model x needs OPENAI_API_KEY"):
        refund.main("Max", None, "x")
    assert list(Path.cwd().iterdir()) == []


def test_wrong_length_of_steps() -> None:
    """A length of steps that is no number is refused with the name of the variable."""
    done = piped({"DURABLE_SWARM_DEMO_SECONDS": "soon"})
    assert "ConfigurationError: DURABLE_SWARM_DEMO_SECONDS must be a number" in done.stderr


def test_the_agents_are_a_short_program() -> None:
    """The demo's agents are a file of under 60 lines that uses public names of the package only."""
    source = Path(refund_agents.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 60
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    own = [node for node in imports if "durable_swarm" in ast.unparse(node)]
    assert [node.module for node in own if isinstance(node, ast.ImportFrom)] == ["durable_swarm"] * len(own)
    assert {name.name for node in own for name in node.names} <= set(durable_swarm.__all__)


@pytest.mark.slow
def test_the_words_appear_as_they_come() -> None:
    """What the agent says appears word by word; killed meanwhile and started again, the demo says it anew, whole."""
    with in_terminal(0.6, name="Ann") as first:
        first.read_until("Applying discount ... done")
        first.read_until("Ann, item")
        first.kill(signal.SIGKILL)
        before, _ = first.end()
    assert "Transcript" not in before
    assert "Have a nice day!" not in before
    second = piped()
    assert (second.returncode, second.stderr) == (0, "")
    assert "from the closing words;" in second.stdout
    assert "[mock]" not in second.stdout
    assert second.stdout.count("Have a nice day!") == 2
    assert TRANSCRIPT.format(name="Ann") in second.stdout
