"""Replay: a recorded run again, with the tools' recorded answers, against the present code, prompt or model.

Replay calls no tool and stores nothing. The same turn loop runs as at the time, and differences are noted turn by turn.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from durable_swarm import agents, codec
from durable_swarm.concurrency import BlockingRuntime, finish
from durable_swarm.errors import ConfigurationError, InvalidOutput, ReplayMismatch, UnknownAgent
from durable_swarm.guardrails import guarded_turns
from durable_swarm.loop import NOT_MADE, Ask, Call, Close, Effect, Ending, Guard, Outcome, Reply, Verdict, drive, known
from durable_swarm.models.call import ModelCall, complete
from durable_swarm.models.choice import choose_model
from durable_swarm.models.client import Clients
from durable_swarm.models.request import build_request, instructions
from durable_swarm.models.verdict import judge
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.arguments import check_agent, check_settings
from durable_swarm.testing.recording import RecordedTurn, Recording, document
from durable_swarm.tools.calls import find_tool, plan_calls
from durable_swarm.types import AgentLike, Block, Message


@dataclass(frozen=True)
class Difference:
    """A difference from the recording: `what` differs, in which `turn` (from 0; None: the run's end).

    `recorded` and `now` are plain data; None if there is no value.
    """

    turn: int | None
    what: str
    recorded: Any
    now: Any

    def __str__(self) -> str:
        lines = [f"  {self.what}", *(f"    {line}" for line in _compared(self.recorded, self.now))]
        return "\n".join(lines)


@dataclass(frozen=True)
class Replay:
    """The result of replaying a run: print it, or read `same` and `differences`.

    `turns` is the number of turns replayed and `messages` are the new messages of the replay. `stopped` is the reason
    if it did not reach the end of the run, or None.
    """

    run_id: str
    turns: int
    differences: list[Difference]
    messages: list[Message]
    stopped: str | None = None

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return not self.differences

    def __str__(self) -> str:
        count = len(self.differences)
        found = "no difference" if not count else "1 difference" if count == 1 else f"{count} differences"
        lines = [f"Replay of run {self.run_id}: {self.turns} turns, {found}"]
        places = sorted({item.turn for item in self.differences if item.turn is not None})
        for place in [*places, None]:
            here = [str(item) for item in self.differences if item.turn == place]
            if here:
                lines += ["the end" if place is None else f"turn {place}", *here]
        return "\n".join(lines if self.stopped is None else [*lines, f"It stopped: {self.stopped}."])


def replay(
    run: str | Path | dict[str, Any], agent: object = None, model: object = None, *, database: str | None = None
) -> Replay:
    """Run a recorded run again, in memory, and return the differences. Tools answer as recorded and are not called.

    `run` is a run's id, the document of an exported run, or the path of its file. `agent` replaces the agent the run
    was started with; other agents are found by name. Functions of agents serve as schemas only.

    Without `model` the recorded replies are used too: this shows whether the present code sends the same requests
    (instructions, tools, model) and treats the replies the same way. `model` is a client, which is asked again, or the
    name of a model for the default client; then prompts may differ, and replies and tool calls are compared.

    A tool call that the recording does not have is a difference and stops the replay, because its answer is unknown.
    `database` is as in `DurableSwarm`, by default the one that is open in this process.

    Raises `ReplayMismatch` if an agent is gone, or a tool that the recorded replies call; `RunNotFound`;
    `ConfigurationError` for an invalid document; and the client's exceptions.
    """
    recording = Recording.of(document(run, database))
    return Replaying(recording, agent, model).go()


class _Stopped(Exception):
    """The replay cannot continue."""


class Replaying:
    """Performs the effects of a replay, and notes the differences."""

    def __init__(self, recording: Recording, agent: Any, model: object) -> None:
        if agent is not None:
            check_agent(agent)
        self.recording = recording
        self.cast: dict[str, AgentLike] = {} if agent is None else {agent.name: agent}
        start = recording.start if agent is None else replace(recording.start, agent=agent.name)
        self.start = replace(start, model_override=model) if isinstance(model, str) else start
        client = None if isinstance(model, str) else model
        check_settings(client, 1, "raise")
        self.clients = None if model is None else _clients(client, model)
        self.requests: list[dict[str, object]] = []
        """The present request of each turn."""
        self.differences: list[Difference] = []
        self._conversation = Conversation()
        self._used: set[tuple[int, int]] = set()
        self._history: list[Message] = self.start.messages
        self._first = len(self.start.messages)

    def go(self) -> Replay:
        """Replay the run to its end, or as far as the recording goes."""
        stopped: str | None = None
        try:
            ending = finish(drive(guarded_turns(self.start), self))
        except _Stopped as stop:
            messages, stopped = self._history[self._first :], str(stop)
        else:
            self._compare_end(ending)
            messages = ending.messages
        finally:
            if self.clients is not None:
                self.clients.close()
        return Replay(self.recording.run_id, len(self.requests), self.differences, messages, stopped)

    async def __call__(self, effect: Effect) -> Reply | list[Outcome] | Block | bool:
        self._history = effect.history
        if isinstance(effect, Guard):
            return self._verdict(effect)
        if isinstance(effect, Close):
            following = self.recording.turns[effect.turn + 1 : effect.turn + 2]
            return any(turn.reply.heard for turn in following)  # The run continued after more messages.
        if isinstance(effect, Ask):
            return await self._ask(effect)
        outcomes: list[Outcome] = []
        for call in effect.calls:
            outcomes.append(known(call, outcomes) or self._answer(effect.turn, call))
        return outcomes

    def _note(self, turn: int | None, what: str, recorded: object, now: object) -> None:
        if recorded != now:
            self.differences.append(Difference(turn, what, recorded, now))

    def _verdict(self, effect: Guard) -> Block | Literal[False]:
        """Return the recorded verdict of guardrails: replay calls none."""
        found = self.recording.turns[effect.turn].verdicts.get(effect.kind)
        if found is None or (found is not False and found.reply is None):
            state = self.recording.status
            raise _Stopped(f"the recording has no passed {effect.kind} guardrails in turn {effect.turn} ({state})")
        return found

    # Model calls

    async def _ask(self, effect: Ask) -> Reply:
        turn = effect.turn
        recorded = self.recording.turns[turn] if turn < len(self.recording.turns) else None
        if recorded is None and self.clients is None:
            if self.recording.status == "done":
                self._note(turn, "the run continues after its recorded end", None, f"{effect.agent} is asked")
            raise _Stopped(f"the recording ends with turn {turn - 1} ({self.recording.status})")
        agent = self._agent(effect.agent, turn)
        if recorded is not None:
            self._note(turn, "agent", recorded.agent, effect.agent)
        context = codec.round_trip(effect.context)
        request = await _request(agent, context, self.start.model_override)
        self.requests.append(request)
        if recorded is not None and self.clients is None:
            self._compare_request(turn, agent, recorded, request)
            return await self._planned(effect, agent, recorded)
        client = None if self.clients is None else self.clients.get()
        return await self._ask_anew(client, effect, agent, context, recorded)

    def _agent(self, name: str, turn: int) -> AgentLike:
        if name not in self.cast:
            try:
                self.cast[name] = agents.find(name)
            except UnknownAgent as error:
                raise ReplayMismatch(
                    f"run {self.recording.run_id!r} needs agent {name!r} in turn {turn}, which is not defined in this "
                    "process; define it, or import its module",
                    run_id=self.recording.run_id,
                ) from error
        return self.cast[name]

    def _compare_request(
        self, turn: int, agent: AgentLike, recorded: RecordedTurn, request: Mapping[str, object]
    ) -> None:
        known = self.recording.requests.get(turn)
        if known is not None:
            for part in sorted(known.keys() | request.keys()):
                self._note(turn, part, known.get(part), request.get(part))
            return
        now = agents.fingerprint(agent)
        if recorded.version is not None and recorded.version != now:
            what = (
                f"version of agent {recorded.agent!r}: its instructions, tools, model or settings changed "
                "(record_golden keeps what is needed to show how)"
            )
            self._note(turn, what, recorded.version, now)

    async def _planned(self, effect: Ask, agent: AgentLike, recorded: RecordedTurn) -> Reply:
        """Return the recorded reply, its calls planned and its answer judged by the present code."""
        turn, new = effect.turn, self._history[self._first :]
        calls = await plan_calls(agent, recorded.reply.message, BlockingRuntime(), recorded.reply.finish, new)
        for was, now in zip(recorded.reply.calls, calls, strict=True):
            if was.plan not in NOT_MADE and find_tool(agent, now.tool) is None:
                raise ReplayMismatch(
                    f"run {self.recording.run_id!r} calls tool {now.tool!r} in turn {turn}, which agent {agent.name!r} "
                    "has no more; bring the tool back, or replay with a model that is asked again",
                    run_id=self.recording.run_id,
                )
            self._note(turn, f"what the model is told of {_call(now)}", was.text or None, now.text or None)
        verdict = self._judged(agent, recorded.reply.message, recorded.reply.finish, effect.misfits)
        if recorded.reply.verdict is not None or verdict is not None:
            then, today = recorded.reply.verdict or Verdict(), verdict or Verdict()
            self._note(turn, "what the model is told of its answer", then.tell or None, today.tell or None)
        return replace(recorded.reply, calls=calls, together=False, verdict=verdict)

    def _judged(self, agent: AgentLike, message: Message, finish: str, misfits: int) -> Verdict | None:
        try:
            return judge(agent, message, finish, misfits)
        except InvalidOutput as error:
            raise _Stopped(str(error)) from error

    async def _ask_anew(
        self, client: object, effect: Ask, agent: AgentLike, context: dict[str, object], recorded: RecordedTurn | None
    ) -> Reply:
        heard = [] if recorded is None else recorded.reply.heard
        completion = await complete(
            client,
            agent,
            [*effect.history, *heard],
            context,
            conversation=self._conversation,
            choice=choose_model(agent, self.start.model_override, None),
            debug=False,
            call=ModelCall(self.recording.run_id, effect.turn),
            waits=BlockingRuntime(),
        )
        new = self._history[self._first :]
        calls = await plan_calls(agent, completion.message, BlockingRuntime(), completion.finish, new)
        was = None if recorded is None else recorded.reply
        # None and "" are the same: streams have one, whole answers the other.
        self._note(
            effect.turn,
            "reply",
            (was and was.message.get("content")) or None,
            completion.message.get("content") or None,
        )
        self._note(
            effect.turn, "tool calls", [_call(call) for call in was.calls] if was else None, list(map(_call, calls))
        )
        verdict = self._judged(agent, completion.message, completion.finish, effect.misfits)
        return Reply(
            completion.message, calls, completion.usage, heard=heard, finish=completion.finish, verdict=verdict
        )

    # Tool calls

    def _answer(self, turn: int, call: Call) -> Outcome:
        for place in self._places(turn, call):
            outcome = self.recording.turns[place[0]].outcomes[place[1]]
            if outcome is not None:
                self._used.add(place)
                return outcome
            if place[0] == turn and self.recording.turns[turn].reply.calls[place[1]].plan not in NOT_MADE:
                raise _Stopped(f"the recording has no result of {_call(call)} in turn {turn} ({self.recording.status})")
        used = sorted(place[0] for place in self._used if self._is_call(place, call))
        if used:
            turns_ = ", ".join(map(str, used))
            self._note(turn, "a tool call more often than recorded", f"{_call(call)} in turn {turns_}", _call(call))
            raise _Stopped(
                f"the recorded answer to {_call(call)} was used up in turn {turns_}; there is none for turn {turn}"
            )
        self._note(turn, "a tool call without a recorded answer", None, _call(call))
        raise _Stopped(f"the recording has no answer to {_call(call)} in turn {turn}")

    def _is_call(self, place: tuple[int, int], call: Call) -> bool:
        return _call(self.recording.turns[place[0]].reply.calls[place[1]]) == _call(call)

    def _places(self, turn: int, call: Call) -> Iterator[tuple[int, int]]:
        """Return the places of the same call in the recording: the same place first, then the others in order."""
        same = [
            (at, recorded.index)
            for at, then in enumerate(self.recording.turns)
            for recorded in then.reply.calls
            if _call(recorded) == _call(call) and (at, recorded.index) not in self._used
        ]
        yield from sorted(same, key=lambda place: (place != (turn, call.index), place[0] != turn, place))

    # The end

    def _compare_end(self, now: Ending) -> None:
        then = self.recording.ending
        if then is None:
            self._note(None, "the run comes to its end", self.recording.status, "done")
            return
        self._note(None, "turns", len(self.recording.turns), len(self.requests))
        self._note(None, "agent", then.agent, now.agent)
        self._note(None, "ended_by", then.ended_by, now.ended_by)
        self._note(None, "context_variables", codec.encode(then.context), codec.encode(now.context))


def _clients(client: object, model: object) -> Clients:
    clients = Clients(client)
    try:
        clients.ready()
    except ConfigurationError as error:
        raise ConfigurationError(
            f"replay(model={model!r}) asks OpenAI: set OPENAI_API_KEY, or give a client of your own as model="
        ) from error
    return clients


async def _request(agent: AgentLike, context: Mapping[str, object], model_override: str | None) -> dict[str, object]:
    """Return the arguments of a model call, without the messages, as plain JSON data."""
    system = await instructions(agent, context, BlockingRuntime())
    # The environment's default model is not a part of the program, so it is not a difference.
    request = build_request(agent, [], model_override or agent.model)
    settings = {key: value for key, value in request.items() if key != "messages" and value is not None}
    plain: dict[str, object] = json.loads(json.dumps({"instructions": system, **settings}, default=str))
    return plain


def _call(call: Call) -> str:
    """Return a tool call in one line, the same for the same arguments however they are written."""
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return f"{call.tool}({call.arguments})"
    if not isinstance(given, dict):
        return f"{call.tool}({call.arguments})"
    return f"{call.tool}({', '.join(f'{name}={json.dumps(given[name], sort_keys=True)}' for name in sorted(given))})"


def _compared(recorded: object, now: object) -> Iterator[str]:
    then, today = _lines(recorded), _lines(now)
    if len(then) == len(today) == 1:
        yield f"recorded: {then[0]}"
        yield f"now:      {today[0]}"
        return
    yield from difflib.unified_diff(then, today, "recorded", "now", lineterm="", n=2)


def _lines(value: object) -> list[str]:
    """Return a value as lines without characters that could control a terminal."""
    if value is None:
        return ["(nothing)"]
    text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    if not isinstance(value, str) and len(text) < 100:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return ["".join(char if char.isprintable() else repr(char)[1:-1] for char in line) for line in text.split("\n")]
