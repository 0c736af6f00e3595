"""`run_demo_loop`: a conversation with an agent in the terminal that survives the program.

A conversation is a session, `repl-<starting agent>-<four signs>`, and every message of the user a run,
`<session>/<number>`. The newest run records the end of the conversation (`conversation`) and the process that owns it
(`held_by`, else the process that executed the run); only the conversation of a dead process is continued.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from durable_swarm import agents
from durable_swarm.credentials import without_secrets
from durable_swarm.display import harmless, one_line
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.api.inspector import inspect_database
from durable_swarm.engine.history.conversation import newest_first
from durable_swarm.engine.processes import here
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import names
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.run_state import notes_on, state_of
from durable_swarm.engine.storage.session_state import BEGUN, LEFT_OUT
from durable_swarm.errors import ConfigurationError, DurableSwarmError, RunNotFound, safe_text
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.repl.prompts import RequestPrompts
from durable_swarm.runs import ENDED, without_answer, written_as_text
from durable_swarm.service import RunDetail, Runs
from durable_swarm.swarm.arguments import check_agent
from durable_swarm.swarm.memory import Swarm
from durable_swarm.swarm.session import Session
from durable_swarm.tools.calls import written_call
from durable_swarm.tools.repeats import FAILED, repeated
from durable_swarm.types import Message, Response

LOOK_BACK = 100
"""How many of the agent's newest conversations are searched for one to continue."""
SIGNS = "bcdfghjkmnpqrstvwxz23456789"
"""The end of a session's id is made of these: no words, and nothing that looks like something else."""

INTERRUPTED = "\nInterrupted. Start the program again to continue this conversation."
PROMPT = "\033[90mUser\033[0m: "
ANEW = "\033[90m— the reply begins anew —\033[0m"
SAME = " \033[93m(same call as before)\033[0m"
"""Shown after a call that succeeded before, or that occurs twice in its reply."""
EMPTY = "\033[90m(empty reply)\033[0m"
"""Shown for a reply with neither text nor calls."""


def run_demo_loop(
    starting_agent: Any,
    context_variables: dict[str, Any] | None = None,
    stream: bool = False,
    debug: bool = False,
    *,
    client: object = None,
    database: str | None = None,
    durable: bool = True,
) -> None:
    """Talk with an agent in the terminal until Ctrl+D, "exit" or "quit".

    The conversation is kept: after a kill or Ctrl+C, the restarted program shows the conversation so far, finishes the
    answer in progress, and continues. After a conversation has ended, a new one begins. A conversation is a session
    (`durable-swarm sessions`). With `stream` answers appear as they come; an interrupted answer appears whole. `client`
    and `database` are those of `DurableSwarm`; with `durable=False` nothing is kept.

    Approvals and questions of tools are asked here too, unless they are answered elsewhere first. A failed turn is
    reported in one line, and the conversation continues. Ctrl+C raises `SystemExit(130)`. Raises `ConfigurationError`
    and `NotSerializable` if a turn cannot be started.
    """
    check_agent(starting_agent)
    agents.remember(starting_agent)
    with DurableSwarm(client, database=database) if durable else Swarm(client) as swarm:
        swarm.clients.ready()
        session = swarm.session(_new_id(starting_agent.name), starting_agent, context_variables=context_variables)
        talk = DemoConversation(session, stream=stream, debug=debug)
        print("Starting Swarm CLI 🐝", flush=True)
        try:
            if isinstance(swarm, DurableSwarm):
                _continue(swarm, talk, starting_agent)
            _converse(swarm, talk)
        except KeyboardInterrupt:
            print(INTERRUPTED if durable else "", flush=True)
            raise SystemExit(130) from None


def pretty_print_messages(messages: list[Message]) -> None:
    """Print the texts and calls of the agents among `messages`, in Swarm's colours."""
    again, turn = repeated(messages), -1
    for message in messages:
        if message["role"] == "tool":
            _print_refused(message)
        if message["role"] != "assistant":
            continue
        turn += 1
        print(_name(message["sender"]), end=" ")
        text, calls = _text_of(message), message.get("tool_calls") or []
        if text or not calls:
            print(harmless(text) if text else EMPTY)
        if len(calls) > 1:
            print()
        for index, call in enumerate(calls):
            mark = SAME if (turn, index) in again else ""
            print(f"{_tool(call)}({one_line(_arguments(call['function']['arguments']))}){mark}")


def _print_refused(message: Message) -> None:
    """Print the result of each failed or refused call; other results are left to the model's reply."""
    text = message.get("content")
    if isinstance(text, str) and text.startswith(FAILED):
        print(f"  \033[93m{one_line(str(message.get('tool_name', '')))} → {one_line(text)}\033[0m")


def _text_of(message: Message) -> str:
    """Return an agent's text, or the refusal that the provider puts in its place."""
    said = message.get("content") or message.get("refusal") or ""
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _name(sender: str) -> str:
    return f"\033[94m{one_line(sender)}\033[0m:"


def _tool(call: dict[str, Any]) -> str:
    return f"\033[95m{one_line(call['function']['name'])}\033[0m"


def process_and_print_streaming_response(response: Iterable[dict[str, Any]]) -> Response:
    """Print the output of `run(stream=True)` as it comes, in Swarm's colours: texts, and tool calls by name.

    If a reply begins anew, its text does too, below a line that says so. Returns the run's response. Raises the run's
    errors, and `ConfigurationError` if the response is missing.
    """
    printer = _Printer()
    try:
        for item in response:
            if "response" in item:
                return cast(Response, item["response"])
            printer.take(item)
    finally:
        printer.close()
    raise ConfigurationError("the stream ended without its response; give all that run(stream=True) gives")


class _Printer:
    """Prints Swarm's dictionaries. A text stays one open line until something else is to be printed."""

    def __init__(self) -> None:
        self._sender = ""
        self._open = False
        self._printed = False
        self._said = ""

    def take(self, item: dict[str, Any]) -> None:
        """Print one of them."""
        self._sender = item.get("sender") or self._sender
        if item.get("content"):
            self._say(item["content"])
        for call in item.get("tool_calls") or ():
            if call["function"]["name"]:
                self.close()
                print(f"{_name(self._sender)} {_tool(call)}()", flush=True)
                self._printed = True
        match item.get("delim"):
            case "reset":
                self.close()
                if self._printed:
                    print(ANEW, flush=True)
                self._printed = False
            case "start":
                self.close()
                self._printed = False
            case "end":
                self.close()
                if not self._printed:
                    print(f"{_name(self._sender)} {EMPTY}", flush=True)

    def _say(self, piece: str) -> None:
        shown = harmless(piece, self._said)
        print(shown if self._open else f"{_name(self._sender)} {shown}", end="", flush=True)
        self._open = self._printed = True
        self._said = piece

    def close(self) -> None:
        """End the open line, if there is one."""
        if self._open:
            self._open, self._said = False, ""
            print(flush=True)


def _arguments(text: str) -> str:
    """Return the arguments of a call in Swarm's form; if they are not an object, as the model wrote them."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(given, dict):
        return text
    return ", ".join(
        f"{json.dumps(name, ensure_ascii=False)}= {json.dumps(value, ensure_ascii=False)}"
        for name, value in given.items()
    )


@dataclass
class DemoConversation:
    """A conversation in a terminal: its session; `turn` counts the user's messages."""

    session: Session
    turn: int = 0
    stream: bool = False
    debug: bool = False

    @property
    def run_id(self) -> str:
        """The run of the newest message."""
        return f"{self.session.id}/{self.turn}"


def prefix(agent: str) -> str:
    """Return the beginning of the ids of all conversations begun with an agent."""
    return f"repl-{re.sub('[^a-z0-9]+', '-', agent.lower()).strip('-')[:40] or 'agent'}-"


def _new_id(agent: str) -> str:
    return prefix(agent) + "".join(secrets.choice(SIGNS) for _ in range(4))


# Talking


def _converse(swarm: Swarm | DurableSwarm, talk: DemoConversation) -> None:
    while (said := _listen()) is not None:
        if said.strip():
            _take_turn(swarm, talk, said)
    if isinstance(swarm, DurableSwarm) and talk.turn:
        here.current().store.annotate(talk.run_id, conversation="ended")


def _listen() -> str | None:
    """Return the user's input, or None if the user wants to leave."""
    try:
        said = input(PROMPT)
    except EOFError:
        print()
        return None
    return None if said.strip().lower() in ("exit", "quit") else said


def _take_turn(swarm: Swarm | DurableSwarm, talk: DemoConversation, said: str) -> None:
    talk.turn += 1
    try:
        _respond(swarm, talk, said)
    except Exception as error:
        _after_failure(swarm, talk, error)


def _respond(swarm: Swarm | DurableSwarm, talk: DemoConversation, said: str) -> None:
    """Send a message, and print the agents' answer; requests are put to the user at the terminal."""
    with RequestPrompts(swarm, talk.run_id):
        if talk.stream:
            response = process_and_print_streaming_response(
                talk.session.run(said, stream=True, debug=talk.debug, run_id=talk.run_id)
            )
            _print_calls(response.messages)
        else:
            response = talk.session.run(said, debug=talk.debug, run_id=talk.run_id)
            pretty_print_messages(response.messages)
    _print_end(response)


def _print_end(response: Response) -> None:
    """Print in a line of its own the reason why a turn ended without an answer, or left a call unmade."""
    if ended := without_answer(response.ended_by):
        print(f"\033[93m({ended})\033[0m", flush=True)
    elif response.messages and response.agent is not None:
        _print_written(written_call(response.agent, response.messages[-1]))


def _print_written(tool: str) -> None:
    if tool:
        print(f"\033[93m({written_as_text(one_line(tool))})\033[0m", flush=True)


def _print_calls(messages: list[Message]) -> None:
    """Print facts about calls that a stream omits: refusals, and repetitions of another call."""
    again, turn = repeated(messages), -1
    for message in messages:
        if message["role"] == "tool":
            _print_refused(message)
        turn += message["role"] == "assistant"
        for index, call in enumerate(message.get("tool_calls") or ()):
            if (turn, index) in again:
                print(f"  {_tool(call)}{SAME}")


def _after_failure(swarm: Swarm | DurableSwarm, talk: DemoConversation, error: Exception) -> None:
    """Report a failed turn; the error of a turn that never began, or has not ended, is raised."""
    if isinstance(swarm, DurableSwarm):
        run = _recorded(talk.run_id)
        if run is None or run.status not in ENDED:
            raise error
    elif isinstance(error, ConfigurationError):
        raise error
    kind = "" if isinstance(error, DurableSwarmError) else f"{type(error).__name__}: "
    text = one_line(without_secrets(f"{kind}{safe_text(error)}"))
    print(f"\033[91mError\033[0m: {text}", flush=True)
    if is_too_long(text):
        print("\033[93m(this turn is left out, so that the conversation can continue)\033[0m", flush=True)


def _recorded(run_id: str) -> RunDetail | None:
    with inspect_database(here.current().url) as visitor:
        try:
            return Runs(visitor).show(run_id)
        except RunNotFound:
            return None


# Continuing


def _continue(swarm: DurableSwarm, talk: DemoConversation, agent: Any) -> None:
    """Load the newest conversation that has not ended, if there is one, and finish its last turn."""
    swarm.recover()
    found = _claim(here.current(), agent.name, swarm.name)
    run = None if found is None else _recorded(found)
    if run is None:
        return
    session, _, turn = run.id.rpartition("/")
    talk.session, talk.turn = swarm.session(session, agent), int(turn)
    print("Continuing where you were:")
    for message in [*_before(here.current(), session, run.id), *run.asked]:
        if message["role"] == "user":
            print(f"{PROMPT}{harmless(_text_of(message))}")
        pretty_print_messages([message])
    sys.stdout.flush()
    try:
        with RequestPrompts(swarm, run.id):
            response = swarm.get(run.id).result()
    except Exception as error:
        _after_failure(swarm, talk, error)
    else:
        pretty_print_messages(response.messages)
        _print_end(response)


def _before(process: Process, session: str, run_id: str) -> list[Message]:
    """Return the messages of a session before its newest run."""
    histories = [messages for row, messages in newest_first(process.store, session) if row.workflow_id != run_id]
    return [message for messages in reversed(histories) for message in messages]


def _claim(process: Process, agent: str, swarm: str) -> str | None:
    """Return the run of the newest turn to continue, which this process owns from now on, or None."""
    with process.identity.alone():
        for row in _newest_turns(process, agent, swarm):
            noted = notes_on(row)
            waits = state_of(row) not in ENDED and noted.get("agent") not in agents.names()
            if noted.get("conversation") != "ended" and not waits and not _lives_elsewhere(process, row):
                process.store.annotate(row.workflow_id, held_by=process.identity.name)
                return str(row.workflow_id)
    return None


def _newest_turns(process: Process, agent: str, swarm: str) -> Iterator[RunRow]:
    """Yield the row of the newest turn of each conversation begun with the agent, newest conversation first."""
    sessions = process.store.sessions
    for state in sessions.beginning(prefix(agent), LOOK_BACK):
        first = process.store.row(f"{state.id}/1", load_output=False)
        ours = state.swarm == swarm and first is not None and notes_on(first).get("agent") == agent
        for _, run_id in sessions.runs.ids(state.id, states=(BEGUN, LEFT_OUT), limit=1) if ours else ():
            row = process.store.row(run_id, load_output=False)
            if row is not None and re.fullmatch(rf"{re.escape(state.id)}/[0-9]+", run_id):
                yield row


def _lives_elsewhere(here: Process, row: RunRow) -> bool:
    """Return True if another living process owns the conversation of this turn. Call it inside `alone`."""
    queue = row.queue_name or ""
    executor = queue.removeprefix(names.QUEUE) if row.status == "ENQUEUED" else row.executor_id or ""
    holder = notes_on(row).get("held_by") or executor
    return holder != here.identity.name and not here.identity.is_dead(holder)
