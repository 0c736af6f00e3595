"""`durable-swarm demo refund`: a run to interrupt at any moment, which continues when the demo is started again.

The agents are in `refund_agents`, a program as a user would write it. This module has the rest: finding an interrupted
run, a scripted model for users without a key, and the output.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Response
from durable_swarm.demos.refund_story import BEFORE, STEP, done_before, print_time
from durable_swarm.display import as_call, harmless, one_line
from durable_swarm.runs import without_answer, written_as_text
from durable_swarm.service import NoRuns, Query, RunDetail, open_runs
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.tools.calls import written_call
from durable_swarm.tools.repeats import repeated

AGENT = "Triage Agent"
PREFIX = "demo-refund-"
DEFAULT_NAME = "Max"
WORDS = 12
"""How many words the scripted model says during one step of the refund."""
GREETING, REQUEST = "Hi, I'm ", ". I want to refund item 99, it is too expensive. And can I get a discount?"


def main(name: str | None = None, database: str | None = None, model: str | None = None) -> int:
    """Finish the demo run that was interrupted, else start a new one; print it and return the exit code.

    `name` is the user's (asked for if None and stdin is a terminal), `database` a URL, `model` the model to ask.
    Returns 0, or 1 if the run failed; Ctrl+C ends the process with 130. Raises `ConfigurationError`.
    """
    print("Connecting to Durable Refund Agent 💵🐝", flush=True)
    try:
        return _demonstrate(name, database, model)
    except KeyboardInterrupt:
        again = command("demo", "refund", database=database)
        print(f"\nInterrupted. Nothing is lost; to continue where it stopped: {again}", flush=True)
        # At once, like a crash: a tool in another thread would continue to print steps that are no longer recorded.
        os._exit(130)


def _demonstrate(name: str | None, database: str | None, model: str | None) -> int:
    agent = _define_agents()
    if model is not None and not _has_key():
        raise ConfigurationError(f"--model {model} needs OPENAI_API_KEY; set it, or leave --model out to run offline")
    found = _interrupted(database)
    if found is not None:
        model = found.model_override
    client = _client(model or agent.model)
    run_id, asked, context = _begin(name) if found is None else _continue(found)
    with DurableSwarm(client, database=database) as swarm:
        try:
            response = _show(swarm.run(agent, asked, context, model, stream=True, run_id=run_id))
        except ConfigurationError:
            raise
        except Exception as error:
            ended = swarm.get(run_id).status == "failed"
            follows = "begins a new run" if ended else "continues this run"
            print(f"\nThe run failed: {one_line(str(error))}\nStarted again, the demo {follows}.", file=sys.stderr)
            return 1
    print_transcript([*asked, *response.messages])
    if why := without_answer(response.ended_by):
        print(f"\nThe run ended without an answer: {why}.")
    elif written := written_call(response.agent or agent, response.messages[-1]):
        print(f"\nNote: {written_as_text(written)}.")
    with open_runs(database) as runs:
        print_time(runs.show(run_id))
    print(f"\nIts steps: {command('show', run_id, database=database)}")
    return 0


def _define_agents() -> Agent:
    try:
        from durable_swarm.demos.refund_agents import triage_agent
    except ValueError:
        raise ConfigurationError("DURABLE_SWARM_DEMO_SECONDS must be a number: the seconds that a step takes") from None
    return triage_agent


# The model


def _has_key() -> bool:
    return bool(os.environ.get("OPENAI_API_KEY"))


def _client(model: str) -> ScriptedModel | None:
    """Return the model client: None, which is openai's, if there is a key, else a script."""
    if _has_key():
        print(f"The model is {model}, at {os.environ.get('OPENAI_BASE_URL') or 'OpenAI'}.")
        return None
    print("There is no OPENAI_API_KEY, so a scripted model answers, offline.")
    return ScriptedModel(scripted_reply, pace=_pace())


def _pace() -> float:
    """Return the seconds before each word of the script: some words in the time of a step."""
    from durable_swarm.demos.refund_agents import SECONDS

    return SECONDS / WORDS


def scripted_reply(request: dict[str, Any]) -> Any:
    """Answer by the content of the request alone, so that the answer is the same each time the program is started."""
    messages = request["messages"]
    called = {made["function"]["name"] for message in messages for made in message.get("tool_calls") or ()}
    if "transfer_to_refunds" not in called:
        return [call("transfer_to_refunds")]
    if "process_refund" not in called:
        return [call("process_refund", item_id="99", reason="it is too expensive")]
    if "apply_discount" not in called:
        return [call("apply_discount")]
    asked = next(message["content"] for message in messages if message["role"] == "user")
    name = asked.removeprefix(GREETING).removesuffix(REQUEST)
    return f"{name}, item 99 is refunded, and you have a discount of 11%. Have a nice day!"


# The run: its id, messages and context variables


Begun = tuple[str, list[dict[str, Any]], dict[str, Any]]


def _interrupted(database: str | None) -> RunDetail | None:
    """Return the newest demo run that is unfinished and that no living process executes."""
    try:
        with open_runs(database) as runs:
            unfinished = runs.list(Query(status="running", agent=AGENT))
            idle = next((run.id for run in unfinished if run.idle and run.id.startswith(PREFIX)), None)
            return None if idle is None else runs.show(idle)
    except NoRuns:
        return None


def _continue(run: RunDetail) -> Begun:
    print(f"Continuing run {run.id} from {_place(run)}; what is done is not done again.\n")
    console = Console(highlight=False)
    for text in done_before(run):
        console.print(Text.assemble(("✓", "green"), f" {text}  ", (BEFORE, "bright_black")), soft_wrap=True)
    print(flush=True)
    return run.id, run.asked, run.context_variables


def _place(run: RunDetail) -> str:
    """Return the point at which the run continues."""
    done = [info.name for info in run.steps if info.status == "done"]
    if not done:
        return "the beginning"
    if done == ["model:Triage Agent"]:
        return "the handoff"
    if "tool:apply_discount" in done:
        return "the closing words"
    if "tool:process_refund" in done:
        return "the discount"
    return f"step {done.count(STEP) + 1} of the refund"


def _begin(name: str | None) -> Begun:
    name = (_ask_name() if name is None else name).strip() or DEFAULT_NAME
    print(f"Kill it at any moment (Ctrl+C, or kill -9 {os.getpid()}) and start it again: it continues.\n", flush=True)
    asked = [{"role": "user", "content": GREETING + name + REQUEST}]
    return f"{PREFIX}{uuid.uuid4().hex[:8]}", asked, {"user_name": name}


def _ask_name() -> str:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return DEFAULT_NAME
    try:
        return input(f"What is your name? [{DEFAULT_NAME}] ")
    except EOFError:
        print()
        return DEFAULT_NAME


# Output


def _show(items: Iterable[dict[str, Any]]) -> Response:
    """Print the agents' replies as they come, and return the response. The tools print their calls."""
    console, sender, speaking, before = Console(highlight=False), "", False, ""
    for item in items:
        if "response" in item:
            return cast(Response, item["response"])
        sender = item.get("sender") or sender
        if item.get("content"):
            if not speaking:
                console.print(Text.assemble((one_line(sender), "bright_blue"), ": "), end="", soft_wrap=True)
            speaking = True
            print(harmless(item["content"], before), end="", flush=True)
            before = item["content"]
        elif speaking and "delim" in item:
            print(flush=True)
            speaking, before = False, ""
    raise AssertionError("a stream ends with its response")


def command(*words: str, database: str | None) -> str:
    """Return the command line for `words`, begun as this process was."""
    own = Path(sys.argv[0]).name == "durable-swarm"
    start = [_as_typed(sys.argv[0])] if own else [_as_typed(sys.executable), "-m", "durable_swarm"]
    return shlex.join([*start, *words, *([] if database is None else ["--database", database])])


def _as_typed(program: str) -> str:
    name = Path(program).name
    return name if shutil.which(name) == program else program


def print_transcript(messages: list[dict[str, Any]]) -> None:
    """Print a whole conversation: in colours if stdout is a terminal."""
    console = Console(highlight=False)
    console.print("\nTranscript", style="bold")
    again, turn = repeated(messages), -1
    for message in messages:
        turn += message["role"] == "assistant"
        marked = {index for place, index in again if place == turn}
        for line in _lines(message, marked):
            console.print(line, soft_wrap=True)


def _lines(message: dict[str, Any], repeats: set[int]) -> Iterator[Text]:
    said = message.get("content") or message.get("refusal") or ""
    text = harmless(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))
    if message["role"] == "user":
        yield Text.assemble(("User", "bright_black"), f": {text}")
    elif message["role"] == "tool":
        yield Text.assemble("  ", ("result", "green"), f": {text}")
    else:
        sender, calls = (one_line(message["sender"]), "bright_blue"), message.get("tool_calls") or ()
        if text or not calls:
            yield Text.assemble(sender, ": ", text or ("(empty reply)", "bright_black"))
        for index, made in enumerate(calls):
            name, arguments = made["function"]["name"], made["function"]["arguments"]
            given = one_line(as_call("", arguments))
            mark = (" (same call as before)", "yellow") if index in repeats else ""
            yield Text.assemble(sender, ": ", (one_line(name), "bright_magenta"), given, mark)
