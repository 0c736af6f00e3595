"""The turn loop, driven from journals: golden traces, restarts from every point, and histories that stay valid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_swarm.concurrency import finish
from durable_swarm.loop import (
    Ask,
    Call,
    Close,
    Effect,
    Ending,
    Outcome,
    Reply,
    Start,
    Turn,
    TurnOverride,
    absorb,
    drive,
    total,
    turns,
)
from durable_swarm.models.wire import to_wire
from durable_swarm.runs import RunHistory, follow
from durable_swarm.testing import check_request
from durable_swarm.types import Message, Usage


def text(content: str, usage: Usage | None = None) -> Reply:
    """Give a reply that ends the run."""
    return Reply({"role": "assistant", "content": content, "tool_calls": None}, [], usage)


def calls(*made: tuple[str, str, str], usage: Usage | None = None) -> Reply:
    """Give a reply that calls tools, each as (tool, arguments, plan); a plan `tell` tells the model "Error: no"."""
    planned = [
        Call(index, f"call_{index}", tool, arguments, plan, "Error: no" if plan == "tell" else "")
        for index, (tool, arguments, plan) in enumerate(made)
    ]
    written = [
        {"id": call.id, "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}
        for call in planned
    ]
    return Reply({"role": "assistant", "content": None, "tool_calls": written}, planned, usage)


def start(**options: Any) -> Start:
    """Give a start with one user message."""
    given: dict[str, Any] = {"agent": "A", "messages": [{"role": "user", "content": "Hi"}], "context": {}}
    return Start(**copy.deepcopy(given | options))


@dataclass
class Journal:
    """Answers effects from a script and writes down what was asked."""

    script: list[Any]
    trace: list[str] = field(default_factory=list)
    requests: list[list[Message]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._answers = iter(self.script)

    async def __call__(self, effect: Effect) -> Any:
        if isinstance(effect, Close):
            return False
        self.contexts.append(copy.deepcopy(effect.context))
        if isinstance(effect, Ask):
            self.trace.append(f"ask {effect.turn} {effect.agent}")
            self.requests.append([to_wire(message) for message in effect.history])
            return next(self._answers)
        made = ", ".join(f"{call.plan}:{call.tool}({call.arguments})" for call in effect.calls)
        self.trace.append(f"call {effect.turn} {effect.agent} {made}")
        return [Outcome(call.text) if call.plan == "tell" else next(self._answers) for call in effect.calls]

    def rest(self) -> list[Any]:
        """Give the answers nobody asked for."""
        return list(self._answers)


PLAIN = [text("Hello")]
TOOL = [calls(("add", '{"a": 1}', "flow")), Outcome("2"), text("It is 2")]
MIXED = [
    calls(("add", "{", "tell"), ("add", '{"a": 1}', "step"), ("nope", "{}", "tell"), ("go", "{}", "flow")),
    Outcome("2", changed={"sum": 2}),
    Outcome('{"assistant": "B"}', agent="B", updates={"who": "B"}),
    calls(("back", "{}", "step"), ("add", "{}", "flow")),
    Outcome('{"assistant": "A"}', agent="A", removed=["sum"]),
    Outcome("0", updates={"who": "A"}),
    text("Done"),
]
MIXED_TRACE = [
    "ask 0 A",
    'call 0 A tell:add({), step:add({"a": 1}), tell:nope({}), flow:go({})',
    "ask 1 B",
    "call 1 B step:back({}), flow:add({})",
    "ask 2 A",
]
GOLDEN: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "plain": (PLAIN, {}, ["ask 0 A"]),
    "tool": (TOOL, {}, ["ask 0 A", 'call 0 A flow:add({"a": 1})', "ask 1 A"]),
    "mixed": (MIXED, {}, MIXED_TRACE),
    "no turns": (PLAIN, {"max_turns": 0}, []),
    "negative turns": (PLAIN, {"max_turns": -1}, []),
    "one message": (TOOL, {"max_turns": 1}, ["ask 0 A", 'call 0 A flow:add({"a": 1})']),
    "two messages": (TOOL, {"max_turns": 2}, ["ask 0 A", 'call 0 A flow:add({"a": 1})']),
    "half a message more": (TOOL, {"max_turns": 2.5}, ["ask 0 A", 'call 0 A flow:add({"a": 1})', "ask 1 A"]),
    "a batch is finished": (MIXED, {"max_turns": 6}, MIXED_TRACE[:4]),
    "no tools": (MIXED, {"execute_tools": False}, ["ask 0 A"]),
    "empty messages": (PLAIN, {"messages": []}, ["ask 0 A"]),
}


def perform(script: list[Any], **options: Any) -> tuple[Journal, Ending]:
    """Drive a fresh loop through the script."""
    journal = Journal(copy.deepcopy(script))
    return journal, finish(drive(turns(start(**options)), journal))


def retell(script: list[Any], **options: Any) -> RunHistory:
    """Follow a journal that ends where `script` ends."""
    rest = copy.deepcopy(script)

    def next_of(kind: type) -> Callable[..., Any]:
        return lambda *_: rest.pop(0) if rest and isinstance(rest[0], kind) else None

    return follow(start(**options), next_of(Reply), next_of(Outcome), pending="Error: no result yet.")


def assert_legal(messages: list[Message]) -> None:
    """Check that a strict provider takes these messages after a user's."""
    history = [{"role": "user", "content": "Hi"}, *messages]
    check_request({"model": "m", "messages": [to_wire(message) for message in history]})


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_traces(name: str) -> None:
    """The order of effects is fixed: each scenario asks for exactly these effects."""
    script, options, trace = GOLDEN[name]
    assert perform(script, **options)[0].trace == trace


def test_golden_ending() -> None:
    """Messages, speakers, handoffs, context and usage of a run of every kind of call are exactly these."""
    ending = perform(MIXED, context={"sum": 0, "kept": [1]})[1]
    spoken = [(message["role"], message.get("sender"), message["content"]) for message in ending.messages]
    assert spoken == [
        ("assistant", "A", None),
        ("tool", None, "Error: no"),
        ("tool", None, "2"),
        ("tool", None, "Error: no"),
        ("tool", None, '{"assistant": "B"}'),
        ("assistant", "B", None),
        ("tool", None, '{"assistant": "A"}'),
        ("tool", None, "0"),
        ("assistant", "A", "Done"),
    ]
    assert (ending.agent, ending.context, ending.usage) == ("A", {"who": "A", "kept": [1]}, None)


def test_context_in_each_effect() -> None:
    """Each effect sees the context as earlier batches left it: changes in place, removals, and then updates."""
    contexts = perform(MIXED, context={"sum": 0})[0].contexts
    assert contexts == [{"sum": 0}, {"sum": 0}, {"sum": 2, "who": "B"}, {"sum": 2, "who": "B"}, {"who": "A"}]


@pytest.mark.parametrize("name", GOLDEN)
def test_restart_from_every_prefix(name: str) -> None:
    """Told from any prefix of its journal, a run has the same messages as far as they go, and then the same ending."""
    script, options, _ = GOLDEN[name]
    journal, ending = perform(script, **options)
    used = len(script) - len(journal.rest())
    for length in range(used + 1):
        story = retell(script[:length], **options)
        assert (story.ending is None) == (length < used)
        told = [message for message in story.messages if message["content"] != "Error: no result yet."]
        assert [message for message in ending.messages if message in told] == told
    assert retell(script[:used], **options).ending == ending


@pytest.mark.parametrize("length", range(len(MIXED) + 1))
def test_history_of_every_prefix_is_legal(length: int) -> None:
    """Wherever the records end, the messages are a history that a strict provider accepts."""
    assert_legal(retell(MIXED[:length]).messages)


def test_calls_without_result_are_answered_as_pending() -> None:
    """A batch of which some calls are recorded keeps what is known and answers the rest with the pending text."""
    reply = calls(("a", "{}", "step"), ("b", "{", "tell"), ("c", "{}", "flow"))
    known: dict[str, Outcome] = {"c": Outcome("c is done")}
    replies = iter([reply])
    story = follow(start(), lambda: next(replies, None), lambda _, call: known.get(call.tool), pending="waiting")
    assert [message["content"] for message in story.messages] == [None, "waiting", "Error: no", "c is done"]
    assert [message["tool_call_id"] for message in story.messages[1:]] == ["call_0", "call_1", "call_2"]
    assert_legal(story.messages)


def test_usage_so_far() -> None:
    """A story has the tokens of the model calls recorded so far, and None where none was counted."""
    one = Usage(requests=1, prompt_tokens=3, completion_tokens=1, total_tokens=4)
    script = [calls(("add", "{}", "flow"), usage=one), Outcome("2"), text("2", usage=one)]
    assert [retell(script[:length]).usage for length in range(4)] == [None, one, one, one + one]
    assert perform(script)[1].usage == one + one


def test_usage_counts_what_is_known() -> None:
    """A model call without counted tokens does not spoil the sum of the others, in a run and in its story alike."""
    one = Usage(requests=1, prompt_tokens=3, completion_tokens=1, total_tokens=4)
    for script in ([calls(("a", "{}", "flow"), usage=one), Outcome(""), text("")], [text("", usage=one)]):
        assert perform(script)[1].usage == one
        assert retell(script).usage == one
    script = [calls(("a", "{}", "flow")), Outcome(""), text("", usage=one)]
    assert perform(script)[1].usage == retell(script).usage == one
    assert (total([]), total([None]), total([one, None, one])) == (None, None, one + one)


def test_absorb() -> None:
    """Changes in place are made in the context itself: removals first, a removal of what is gone being no error."""
    context = {"a": 1, "b": 2}
    absorb(context, Outcome("", changed={"c": 3, "a": 0}, removed=["b", "gone"]))
    assert context == {"a": 0, "c": 3}


def test_an_exception_of_the_performer_ends_the_run() -> None:
    """What the performer raises comes out of `drive`, also where it is no Exception."""

    async def perform_badly(_: Effect) -> Any:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        finish(drive(turns(start()), perform_badly))


NAMES = st.sampled_from(["add", "go", "", "sprach führer", "x" * 90, "a.b", "null"])
ARGUMENTS = st.sampled_from(["{}", '{"a": 1}', "", "{", "[]", "null", "NaN", '{"a": "\\ud800"}', "[" * 3000])
PLANNED = st.lists(st.tuples(NAMES, ARGUMENTS, st.sampled_from(["step", "flow", "tell"])), min_size=1, max_size=4)
OUTCOMES = st.builds(
    Outcome,
    st.sampled_from(["", "ok", "\0", "\ud800"]),
    st.sampled_from([None, "A", "B"]),
    st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=2),
    st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=2),
    st.lists(st.sampled_from("abc"), max_size=2),
)


@st.composite
def scripts(draw: st.DrawFn) -> list[Any]:
    """Give the answers of a whole run of up to four turns."""
    script: list[Any] = []
    for made in draw(st.lists(PLANNED, max_size=3)):
        script.append(calls(*made))
        script += [draw(OUTCOMES) for _, _, plan in made if plan != "tell"]
    return [*script, text(draw(st.sampled_from(["", "end"])))]


@settings(max_examples=150, deadline=None)
@given(scripts(), st.none() | st.integers(0, 9), st.booleans())
def test_generated_runs(script: list[Any], max_turns: int | None, execute_tools: bool) -> None:
    """Any run, cut anywhere, has legal requests and a legal story; the whole story ends as the run did."""
    journal, ending = perform(script, max_turns=max_turns, execute_tools=execute_tools)
    for request in journal.requests:
        check_request({"model": "m", "messages": request})
    recorded = script[: len(script) - len(journal.rest())]
    for length in range(len(recorded) + 1):
        story = retell(recorded[:length], max_turns=max_turns, execute_tools=execute_tools)
        if execute_tools:
            assert_legal(story.messages)
    assert retell(recorded, max_turns=max_turns, execute_tools=execute_tools).ending == ending


def kept_turns(script: list[Any]) -> list[Turn]:
    """Give a whole run's answers as its turns."""
    found, answers = [], list(script)
    while answers:
        reply = answers.pop(0)
        found.append(Turn(reply, [Outcome(c.text) if c.plan == "tell" else answers.pop(0) for c in reply.calls]))
    return found


@settings(max_examples=150, deadline=None)
@given(scripts(), st.data())
def test_a_fork_ends_as_its_run(script: list[Any], data: st.DataObject) -> None:
    """A run that keeps any number of first turns asks for the others only, and ends as the run did."""
    told = kept_turns(script)
    count = data.draw(st.integers(0, len(told)))
    rest = [answer for turn in told[count:] for answer in answers_of(turn)]
    journal, ending = perform(rest, kept=kept_turns(copy.deepcopy(script))[:count])
    assert len(journal.requests) == len(told) - count
    assert ending == perform(script)[1]


def answers_of(turn: Turn) -> list[Any]:
    """Give what a turn's effects were answered with."""
    made = zip(turn.reply.calls, turn.outcomes, strict=True)
    return [turn.reply, *(outcome for call, outcome in made if call.plan != "tell")]


def test_a_detour_changes_agent_and_history() -> None:
    """A detour hands over and adds messages, which max_turns does not count; after an end it goes on."""
    said = {"role": "user", "content": "More"}
    _, ending = perform([text("One."), text("Two.")], max_turns=2, detours={1: TurnOverride("B", [said])})
    assert [(message.get("sender"), message["content"]) for message in ending.messages] == [
        ("A", "One."),
        (None, "More"),
        ("B", "Two."),
    ]
    assert ending.agent == "B"
