"""`run_demo_loop` as its user sees it: a conversation in a terminal, which survives the program."""

from __future__ import annotations

import io
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Response, compat, run_demo_loop
from durable_swarm.repl import demo_loop
from durable_swarm.testing import ScriptedModel
from tests.support import programs
from tests.support.terminal import Terminal

PROGRAM = '''
import os, sys, time
from durable_swarm import Agent, ask_human, run_demo_loop, tool
from durable_swarm.testing import ScriptedModel

def reply(request):
    last = request["messages"][-1]
    if last["role"] == "tool":
        return f"The tool gave {last['content']}."
    said = last["content"]
    if said.startswith("call "):
        return [said.removeprefix("call ")]
    return f"{said} is number {sum(message['role'] == 'user' for message in request['messages'])}."

def look(context_variables):
    """Look."""
    print("looking\\n", end="", flush=True)
    time.sleep(float(os.environ.get("SECONDS", 0)))
    context_variables["looks"] = context_variables.get("looks", 0) + 1
    return f"look {context_variables['looks']}"

def hand_over():
    """Hand over."""
    return Agent.other

def fail():
    """Fail."""
    raise ValueError("no\\nway")

@tool(approval=True)
def pay(amount: int = 250):
    """Pay."""
    return f"paid {amount}"

def choose():
    """Choose."""
    return ask_human("Which colour?", choices=["red", "blue"])

first = Agent(name="First", functions=[look, hand_over, fail, pay, choose])
Agent.other = Agent(name="Other", functions=[look])
run_demo_loop(first, {"looks": 10}, client=ScriptedModel(reply, pace=float(os.environ.get("PACE", 0))),
              durable="memory" not in sys.argv,
              stream="stream" in sys.argv)
'''
START = "Starting Swarm CLI 🐝\n"
PROMPT = "\x1b[90mUser\x1b[0m: "
FIRST, OTHER = "\x1b[94mFirst\x1b[0m: ", "\x1b[94mOther\x1b[0m: "
CONTINUING = "Continuing where you were:\n"
INTERRUPTED = "Interrupted. Start the program again to continue this conversation.\n"


def in_terminal(seconds: float = 0, *arguments: str, pace: float = 0) -> Terminal:
    """Start the program in a terminal; its tool takes so many seconds, each word of a streamed reply `pace`."""
    return Terminal([sys.executable, "-c", PROGRAM, *arguments], {"SECONDS": str(seconds), "PACE": str(pace)})


def piped(said: str, *arguments: str) -> str:
    """Give what the program prints when this is its input."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = programs.run(command, input=said, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def killed_at_prompt(*said: str) -> str:
    """Say this, wait for the answer to each, kill the program at its next prompt, and give what it printed."""
    with in_terminal() as terminal:
        for text in said:
            prompts = terminal.output.count(PROMPT)
            terminal.read_until(PROMPT, prompts or 1)
            terminal.type(f"{text}\n")
            terminal.read_until(PROMPT, max(prompts, 1) + 1)
        terminal.kill(signal.SIGKILL)
        output, _ = terminal.end()
    return output


def test_looks_like_swarm() -> None:
    """Banner, prompt, names and tool calls are printed in Swarm's words and colours."""
    assert piped("hi\ncall look\n") == (
        f"{START}{PROMPT}{FIRST}hi is number 1.\n"
        f"{PROMPT}looking\n{FIRST}\x1b[95mlook\x1b[0m()\n{FIRST}The tool gave look 11.\n{PROMPT}\n"
    )


@pytest.mark.parametrize(
    ("calls", "printed"),
    [
        ([("f", '{"a": "x", "b": [1]}')], '\x1b[94mA\x1b[0m: \x1b[95mf\x1b[0m("a"= "x", "b"= [1])\n'),
        ([("f", "{}"), ("g", "{}")], "\x1b[94mA\x1b[0m: \n\x1b[95mf\x1b[0m()\n\x1b[95mg\x1b[0m()\n"),
        ([("f", "not JSON")], "\x1b[94mA\x1b[0m: \x1b[95mf\x1b[0m(not JSON)\n"),
    ],
)
def test_tool_calls_are_printed(calls: list[tuple[str, str]], printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tool calls are printed as Swarm prints them, also those that no tool could take."""
    made = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    demo_loop.pretty_print_messages([{"role": "assistant", "sender": "A", "content": None, "tool_calls": made}])
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("arguments", [(), ("memory",), ("stream",)], ids=["durable", "memory", "streamed"])
def test_what_tools_ask_is_asked_here(arguments: tuple[str, ...]) -> None:
    """An approval and a question are put to the user; a wrong answer is told, and the question asked again."""
    printed = piped("call pay\ny\ncall pay\n\ncall choose\ngreen\nred\n", *arguments)
    assert printed.count("First asks to call pay") == 2
    assert printed.count("pay()? [y/N] ") == 2
    assert "The tool gave paid 250." in printed
    assert "The tool gave Error: this call was rejected." in printed
    assert printed.count("Answer (red, blue): ") == 2
    assert "one of" in printed
    assert "The tool gave red." in printed


def test_killed_while_it_asks() -> None:
    """Killed with a question on the screen, the program asks it again when it is started again."""
    with in_terminal() as terminal:
        terminal.type("call pay\n")
        terminal.read_until("[y/N] ")
        terminal.kill(signal.SIGKILL)
        terminal.end()
    with in_terminal() as terminal:
        terminal.read_until("[y/N] ")
        terminal.type("yes\n")
        terminal.read_until(f"{FIRST}The tool gave paid 250.\n{PROMPT}")


def test_killed_at_the_prompt() -> None:
    """Started again, the program shows the conversation and goes on with its history, agent and context variables."""
    before = killed_at_prompt("hi", "call look", "call hand_over")
    with in_terminal() as terminal:
        terminal.read_until(PROMPT, 4)
        shown = terminal.output
        terminal.type("call look\n")
        terminal.read_until(f"{OTHER}The tool gave look 12.\n{PROMPT}")
        terminal.type("on\nexit\n")
        output, code = terminal.end()
    assert shown == START + CONTINUING + before.removeprefix(START).replace("looking\n", "")
    assert f"{OTHER}on is number 5.\n" in output
    assert code == 0
    assert piped("") == f"{START}{PROMPT}\n"


def test_a_conversation_is_a_session() -> None:
    """The conversation of the terminal is a session with an id that can be typed, and stores each message once."""
    killed_at_prompt("hi", "call look")
    with DurableSwarm(ScriptedModel([])) as swarm:
        [session] = swarm.sessions()
        assert re.fullmatch("repl-first-[a-z0-9]{4}", session.id)
        assert [run.id for run in session.runs()] == [f"{session.id}/1", f"{session.id}/2"]
        assert [message["content"] for message in session.messages() if message["role"] == "user"] == [
            *("hi", "call look")
        ]
        assert session.context_variables == {"looks": 11}


def test_killed_in_the_middle_of_an_answer() -> None:
    """Started again, the program finishes the answer it was at: with one tool call more, and no model call."""
    with in_terminal(60) as terminal:
        terminal.type("hi\ncall look\n")
        terminal.read_until("looking")
        terminal.kill(signal.SIGKILL)
        terminal.end()
    # The answer continues at once, while what was said is shown.
    shown, _, rest = piped("hi\n").replace("looking\n", "").partition(f"{PROMPT}call look\n")
    assert shown == f"{START}{CONTINUING}{PROMPT}hi\n{FIRST}hi is number 1.\n"
    assert rest == (
        f"{FIRST}\x1b[95mlook\x1b[0m()\n{FIRST}The tool gave look 11.\n{PROMPT}{FIRST}hi is number 3.\n{PROMPT}\n"
    )


@pytest.mark.parametrize("farewell", ["", "exit\n", " QUIT \n"], ids=["end of input", "exit", "quit"])
def test_an_ended_conversation_stays_ended(farewell: str) -> None:
    """Leaving ends the conversation, also one that was continued; the next start begins a fresh one."""
    killed_at_prompt("hi")
    assert CONTINUING in piped(farewell)
    assert CONTINUING not in piped(farewell)


def test_ctrl_c_keeps_the_conversation() -> None:
    """Ctrl+C, at the prompt or in the middle of an answer, ends the program (code 130) and not the conversation."""
    for seconds, said, moment in ((0, "hi\n", "number 1.\n" + PROMPT), (60, "call look\n", "looking")):
        with in_terminal(seconds) as terminal:
            terminal.read_until(PROMPT)
            terminal.type(said)
            terminal.read_until(moment)
            # A signal between the prompt and the read that follows is only seen after the read.
            time.sleep(0.3)
            terminal.kill(signal.SIGINT)
            output, code = terminal.end()
        assert code == 130, output
        assert output.endswith(f"\n{INTERRUPTED}"), output
    assert f"{FIRST}The tool gave look 11.\n" in piped("")


def test_a_living_conversation_is_left_alone() -> None:
    """While one program talks, another has a conversation of its own; a dead one's is taken by the first to come."""
    killed_at_prompt("one")
    with in_terminal() as heir:
        heir.read_until(PROMPT, 2)
        assert CONTINUING in heir.output
        with in_terminal() as second:
            second.read_until(PROMPT)
            second.type("two\n")
            second.read_until("two is number 1.")
            heir.type("three\n")
            heir.read_until("three is number 2.")
            second.kill(signal.SIGKILL)
            second.end()
        with in_terminal() as third:
            third.read_until("two is number 1.")


def test_a_failed_turn_is_told() -> None:
    """A turn that fails is told in one line, and the conversation goes on, after a restart too."""
    error = "\x1b[91mError\x1b[0m: ValueError: no way\n"
    assert f"{PROMPT}{error}{PROMPT}{FIRST}hi is number 3.\n" in piped("hi\ncall fail\nhi\n")
    assert error in killed_at_prompt("call fail")
    output = piped("hi\n")
    assert f"{CONTINUING}{PROMPT}call fail\n\x1b[91mError\x1b[0m: " in output
    assert f"{FIRST}hi is number 2.\n" in output


def test_in_memory() -> None:
    """With `durable=False` the same conversation leaves no file behind, and failures end nothing either."""
    output = piped("call look\ncall fail\ncall hand_over\ncall look\n", "memory")
    assert "ValueError: no way" in output
    assert f"{OTHER}The tool gave look 12.\n{PROMPT}\n" in output
    assert list(Path.cwd().iterdir()) == []


def test_old_programs_choose_with_install() -> None:
    """`compat.install(durable=False)` gives the loop that keeps nothing."""
    try:
        compat.install(durable=False)
        names: dict[str, Any] = {}
        exec("from swarm.repl import run_demo_loop", names)
        loop = names["run_demo_loop"]
        assert isinstance(loop, partial)
        assert (loop.func, loop.keywords) == (run_demo_loop, {"durable": False})
    finally:
        compat.uninstall()


def test_wrong_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot work is refused before the first prompt: something that is no agent, no model client."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    model = ScriptedModel(["Hello"])
    with pytest.raises(ConfigurationError, match="agent must be an Agent"):
        run_demo_loop("Agent", client=model)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        run_demo_loop(Agent())
    assert capsys.readouterr().out == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("arguments", [("stream",), ("stream", "memory")])
def test_streamed(arguments: tuple[str, ...]) -> None:
    """Streamed, names, texts and tool calls (these by name) are printed in Swarm's colours, and failures are told."""
    assert piped("hi\ncall look\ncall fail\nhi\n", *arguments) == (
        f"{START}{PROMPT}{FIRST}hi is number 1.\n"
        f"{PROMPT}{FIRST}\x1b[95mlook\x1b[0m()\nlooking\n{FIRST}The tool gave look 11.\n"
        f"{PROMPT}{FIRST}\x1b[95mfail\x1b[0m()\n\x1b[91mError\x1b[0m: ValueError: no way\n"
        f"{PROMPT}{FIRST}hi is number 4.\n{PROMPT}\n"
    )


def test_a_streamed_answer_is_continued() -> None:
    """Killed in the middle of a streamed answer and started again, the program gives it whole, and goes on."""
    with in_terminal(0, "stream", pace=0.4) as terminal:
        terminal.read_until(PROMPT)
        terminal.type("hi\n")
        terminal.read_until(f"{FIRST}hi")
        assert "number" not in terminal.output
        terminal.kill(signal.SIGKILL)
        terminal.end()
    assert piped("more\n", "stream") == (
        f"{START}{CONTINUING}{PROMPT}hi\n{FIRST}hi is number 1.\n{PROMPT}{FIRST}more is number 2.\n{PROMPT}\n"
    )


def test_a_streamed_reply_that_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """After a reset the text begins anew on a line of its own, with its sender; a reset of nothing is not told."""
    said = [("sender", "A"), ("content", "Hel"), ("delim", "reset"), ("content", "Hello"), ("delim", "end")]
    quiet = [{"delim": "start"}, {"sender": "A", "content": ""}, {"delim": "reset"}]
    ended = Response(messages=[])
    items = [*quiet, *({key: value} for key, value in said), {"response": ended}]
    assert demo_loop.process_and_print_streaming_response(items) is ended
    name = "\x1b[94mA\x1b[0m: "
    assert capsys.readouterr().out == f"{name}Hel\n{demo_loop.ANEW}\n{name}Hello\n"
    with pytest.raises(ConfigurationError, match="without its response"):
        demo_loop.process_and_print_streaming_response([{"delim": "start"}])
