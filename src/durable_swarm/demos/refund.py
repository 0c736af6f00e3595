"""`durable-swarm demo refund`: a run to interrupt at any moment, which goes on where it stopped when started again.

The agents are in `refund_agents`, a program as a user would write it. Here is the rest: finding a run that was
interrupted, a scripted model for those without a key, and the transcript.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from durable_swarm import ConfigurationError, DurableSwarm, Response, Run
from durable_swarm.repl import lives_elsewhere
from durable_swarm.testing import ScriptedModel, call

AGENT = "Refunds Agent"
PREFIX = "demo-refund-"
DEFAULT_NAME = "Max"
GREETING, REQUEST = "Hi, I'm ", ". I want to refund item 99, it is too expensive. And can I get a discount?"


def main(name: str | None = None, database: str | None = None, model: str | None = None) -> int:
    """Finish the demo run that was interrupted, else make a new one; print it and give the exit code.

    `name` is the user's (asked for where None and stdin is a terminal), `database` a URL, `model` the model to ask.
    Gives 0, 1 if the run failed, 130 after Ctrl+C. Raises `ConfigurationError`.
    """
    print("Connecting to Durable Refund Agent 💵🐝", flush=True)
    again = _command("demo", "refund", database=database)
    with DurableSwarm(_client(model), database=database) as swarm:
        try:
            run_id, response = _finish_interrupted(swarm) or _make_new(swarm, name, model)
        except KeyboardInterrupt:
            print(f"\nInterrupted. Nothing is lost: {again}  goes on where this stopped.")
            return 130
        except ConfigurationError:
            raise
        except Exception as error:
            print(f"The run failed: {error} Started again, the demo begins a new run.", file=sys.stderr)
            return 1
    _print_transcript(response)
    print(f"\nIts steps and times: {_command('show', run_id, database=database)}")
    return 0


def _client(model: str | None) -> Any:
    """Give the model client: None, which is openai's, where there is a key, else the script."""
    if os.environ.get("OPENAI_API_KEY"):
        where = os.environ.get("OPENAI_BASE_URL") or "OpenAI"
        print(f"The model is {model or _agent().model} at {where}.")
        return None
    if model is not None:
        raise ConfigurationError(f"--model {model} needs a key: set OPENAI_API_KEY, or leave --model out to run offline")
    print("There is no OPENAI_API_KEY, so a scripted model answers, offline.")
    return ScriptedModel(scripted_reply)


def scripted_reply(request: dict[str, Any]) -> Any:
    """Answer by what the request holds and nothing else, so that it is the same answer in every life of the program."""
    messages = request["messages"]
    called = {made["function"]["name"] for message in messages for made in message.get("tool_calls") or ()}
    if "process_refund" not in called:
        return [call("process_refund", item_id="99", reason="it is too expensive")]
    if "apply_discount" not in called:
        return [call("apply_discount")]
    asked = next(message["content"] for message in messages if message["role"] == "user")
    name = asked.removeprefix(GREETING).removesuffix(REQUEST)
    return f"{name}, item 99 is refunded, and you have a discount of 11%. Have a nice day!"


# The run


def _agent() -> Any:
    """Define the demo's agents, at the moment from which an interrupted run may go on."""
    try:
        from durable_swarm.demos.refund_agents import refund_agent
    except ValueError:
        raise ConfigurationError("DURABLE_SWARM_DEMO_SECONDS must be a number, the seconds a step takes") from None
    return refund_agent


def _finish_interrupted(swarm: DurableSwarm) -> tuple[str, Response] | None:
    """Finish the newest demo run whose process is dead; None where there is none."""
    with _quiet():
        runs = swarm.runs(status="running", agent=AGENT)
    run = next((run for run in runs if run.id.startswith(PREFIX) and not lives_elsewhere(run.id)), None)
    if run is None:
        return None
    print(f"Run {run.id} was interrupted. Continuing it from {_place(run)}; what is done is not repeated.", flush=True)
    _agent()
    return run.id, run.result()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the warning that a run waits for its agents: here they are defined after the look, on purpose."""
    log = logging.getLogger("durable_swarm")
    log.disabled, before = True, log.disabled
    try:
        yield
    finally:
        log.disabled = before


def _place(run: Run) -> str:
    """Say where the run goes on."""
    done = [info.name for info in run.steps() if info.status == "done"]
    if not done:
        return "the beginning"
    if "tool:apply_discount" in done:
        return "the closing words"
    if "tool:process_refund" in done:
        return "the discount"
    return f"step {done.count('refund_step') + 1} of the refund"


def _make_new(swarm: DurableSwarm, name: str | None, model: str | None) -> tuple[str, Response]:
    name = (_ask_name() if name is None else name).strip() or DEFAULT_NAME
    print(f"Interrupt it at any moment (Ctrl+C, or kill -9 {os.getpid()}) and start it again: it goes on.\n", flush=True)
    run_id = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    messages = [{"role": "user", "content": GREETING + name + REQUEST}]
    return run_id, swarm.run(_agent(), messages, {"user_name": name}, model, run_id=run_id)


def _ask_name() -> str:
    if not sys.stdin.isatty():
        return DEFAULT_NAME
    try:
        return input(f"What is your name? [{DEFAULT_NAME}] ")
    except EOFError:
        print()
        return DEFAULT_NAME


# What is printed


def _command(*words: str, database: str | None) -> str:
    """Give the command line for `words`, as this process was started."""
    script = sys.argv[0]
    if Path(script).name != "durable-swarm":
        start = [Path(sys.executable).name, "-m", "durable_swarm"]
    else:
        start = ["durable-swarm" if shutil.which("durable-swarm") == script else script]
    return shlex.join([*start, *words, *([] if database is None else ["--database", database])])


def _print_transcript(response: Response) -> None:
    """Print the whole conversation: in colours where stdout is a terminal."""
    console = Console(highlight=False)
    user = {"role": "user", "content": GREETING + response.context_variables["user_name"] + REQUEST}
    console.print("\nTranscript", style="bold")
    for message in [user, *response.messages]:
        for line in _lines(message):
            console.print(line, soft_wrap=True)


def _lines(message: dict[str, Any]) -> Iterator[Text]:
    if message["role"] == "user":
        yield Text.assemble(("User", "bright_black"), f": {message['content']}")
    elif message["role"] == "tool":
        yield Text.assemble("  ", ("result", "green"), f": {message['content']}")
    else:
        if message["content"]:
            yield Text.assemble((message["sender"], "bright_blue"), f": {message['content']}")
        for made in message["tool_calls"] or ():
            yield _call_line(message["sender"], made["function"])


def _call_line(sender: str, function: dict[str, str]) -> Text:
    try:
        arguments = ", ".join(f"{name}={value!r}" for name, value in json.loads(function["arguments"]).items())
    except (ValueError, AttributeError):
        arguments = function["arguments"]
    return Text.assemble((sender, "bright_blue"), ": ", (function["name"], "bright_magenta"), f"({arguments})")
