"""`Run.events`: what is told of a run, numbered, the same live and later, here and elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, Event, NotSerializable, Result, RunNotFound, emit, step
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.engine.history.follower import RecordedEvents
from durable_swarm.redaction import Redacting
from durable_swarm.testing import ScriptedModel, call, cut
from tests.engine.conftest import Make
from tests.engine.helpers import connected, rows, unique, user

Told = list[tuple[str, dict[str, Any]]]


def told(events: list[Event]) -> Told:
    """Give types and data, after checking that the numbers have no gap and the times do not go back."""
    assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + len(events)))
    return [(event.type, event.data) for event in events]


def types(events: list[Event]) -> list[str]:
    """Give the types."""
    return [kind for kind, _ in told(events)]


def texts(events: list[Event]) -> dict[int, str]:
    """Give the text of each turn by the rules: pieces since the last reset, joined."""
    found: dict[int, str] = {}
    for event in events:
        if event.type == "text.reset":
            found[event.data["turn"]] = ""
        elif event.type == "text.delta":
            found[event.data["turn"]] = found.get(event.data["turn"], "") + event.data["text"]
    return {turn: text for turn, text in found.items() if text}


def transcript(run: Any) -> dict[int, str]:
    """Give the text of each turn as the messages have it."""
    said = [message for message in run.messages() if message["role"] == "assistant"]
    return {turn: message["content"] for turn, message in enumerate(said) if message["content"]}


@step
def stepped(text: str) -> str:
    """Do a step."""
    return text


def plain(text: str) -> str:
    """Do it plainly."""
    emit("half")
    emit({"done": 2, "of": 2})
    return text


def test_the_story_of_a_run(make_anywhere: Make) -> None:
    """Events tell turns, text, calls with their arguments and results, progress, handoffs and the end, in order."""
    second = Agent(name=unique("Second"))

    def to_second() -> Result:
        """Hand off."""
        return Result(value="over to you", agent=second)

    first = Agent(name=unique("First"), functions=[stepped, plain, to_second])
    script = [[call("stepped", text="a"), call("plain", text="b"), call("missing")], [call("to_second")], "Hello."]
    swarm = make_anywhere(ScriptedModel(script))
    run = swarm.start(first, user())
    live = list(run.events())
    assert told(live) == [
        ("run.started", {"agent": first.name}),
        ("turn.started", {"turn": 0, "agent": first.name}),
        ("tool.started", {"turn": 0, "tool": "stepped", "call_id": "call_1", "arguments": '{"text": "a"}'}),
        ("tool.finished", {"turn": 0, "tool": "stepped", "call_id": "call_1", "result": "a"}),
        ("tool.started", {"turn": 0, "tool": "plain", "call_id": "call_2", "arguments": '{"text": "b"}'}),
        ("tool.progress", {"turn": 0, "tool": "plain", "call_id": "call_2", "attempt": 1, "progress": "half"}),
        (
            "tool.progress",
            {"turn": 0, "tool": "plain", "call_id": "call_2", "attempt": 1, "progress": {"done": 2, "of": 2}},
        ),
        ("tool.finished", {"turn": 0, "tool": "plain", "call_id": "call_2", "result": "b"}),
        ("tool.started", {"turn": 0, "tool": "missing", "call_id": "call_3", "arguments": "{}"}),
        (
            "tool.finished",
            {
                "turn": 0,
                "tool": "missing",
                "call_id": "call_3",
                "result": "Error: Tool missing not found. Your tools are: stepped, plain, to_second.",
            },
        ),
        ("turn.started", {"turn": 1, "agent": first.name}),
        ("tool.started", {"turn": 1, "tool": "to_second", "call_id": "call_4", "arguments": "{}"}),
        ("tool.finished", {"turn": 1, "tool": "to_second", "call_id": "call_4", "result": "over to you"}),
        ("handoff", {"turn": 1, "from": first.name, "to": second.name}),
        ("turn.started", {"turn": 2, "agent": second.name}),
        ("text.delta", {"turn": 2, "text": "Hello."}),
        ("run.finished", {"agent": second.name, "ended_by": "answer"}),
    ]
    assert [event.time for event in live] == sorted(event.time for event in live)
    assert live == list(swarm.get(run.id).events())
    for after in (0, 1, 6, len(live) - 1, len(live), len(live) + 5):
        assert list(swarm.get(run.id).events(after=after)) == live[after:]


def test_pieces_are_the_same_live_and_later(make_anywhere: Make) -> None:
    """The pieces of a text that came slowly are stored in few rows, and read later as they were told live."""
    text = " ".join(f"word{index}" for index in range(100))
    swarm = make_anywhere(ScriptedModel([text, text], pace=0.01))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    live, at = [], []
    for event in run.events():
        live.append(event)
        at.append(time.monotonic())
    pieces = [event for event in live if event.type == "text.delta"]
    assert texts(live) == transcript(run) == {0: text}
    assert len(pieces) > 30
    assert at[3] < at[-1] - 0.2, "the first pieces came with the last ones"
    assert live == list(swarm.get(run.id).events())


def test_async_readers(make: Make) -> None:
    """`events_async` gives the same, on the loop that executes the run."""

    async def main() -> None:
        swarm = make(ScriptedModel([[call("plain", text="x")], "One two three."], pace=0.002))
        agent = Agent(name=unique(), functions=[plain])
        run = await swarm.start_async(agent, user())
        live = [event async for event in run.events_async()]
        assert types(live)[-1] == "run.finished"
        assert live == [event async for event in (await swarm.get_async(run.id)).events_async()]
        assert live[3:] == [event async for event in run.events_async(after=3)]

    asyncio.run(main())


def test_runs_that_do_not_stream(make: Make) -> None:
    """A run that was not streamed has events too: its texts come in one piece each, and it costs no row."""
    swarm = make(ScriptedModel([[call("stepped", text="x")], "One two three."]))
    response = swarm.run(Agent(name=unique(), functions=[stepped]), user(), run_id="plain")
    assert response.messages[-1]["content"] == "One two three."
    events = list(swarm.get("plain").events())
    assert types(events) == [
        *("run.started", "turn.started", "tool.started", "tool.finished", "turn.started", "text.delta", "run.finished")
    ]
    assert not rows(str(swarm._open().url), "value", "streams")


def test_calls_that_run_together(make_anywhere: Make) -> None:
    """Calls that run together start together, and finish in the order in which they did, live and later."""
    gate = asyncio.Event()

    async def slow() -> str:
        """Wait for the fast one."""
        await gate.wait()
        return "slow"

    async def fast() -> str:
        """Let the slow one go on."""
        emit("going")
        gate.set()
        return "fast"

    swarm = make_anywhere(ScriptedModel([[call("slow"), call("fast"), call("missing")], "Done."]))
    agent = Agent(name=unique(), functions=[slow, fast])
    run = swarm.start(agent, user())
    live = list(run.events())
    calls = [(kind, data["tool"]) for kind, data in told(live) if kind.startswith("tool")]
    started = [("tool.started", name) for name in ("slow", "fast", "missing")]
    assert calls[:4] == [*started, ("tool.finished", "missing")]
    assert calls[4:] == [("tool.progress", "fast"), ("tool.finished", "fast"), ("tool.finished", "slow")]
    assert live == list(swarm.get(run.id).events())


def test_a_repeated_call_resets(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that broke off is followed by `text.reset`; what comes then is the text of the transcript."""
    monkeypatch.setattr("durable_swarm.models.provider_errors.FIRST_PAUSE", 0.0)
    long = " ".join(["never"] * 50)
    swarm = make_anywhere(ScriptedModel([cut(long, after=40), cut(long, after=3), "What is true."], pace=0.004))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    live = list(run.events())
    assert types(live).count("text.reset") == 2
    assert texts(live) == transcript(run) == {0: "What is true."}
    assert live == list(swarm.get(run.id).events())


def test_a_run_that_fails_and_is_resumed(make_anywhere: Make) -> None:
    """The event of an end that `resume` took back stays under its number; the run goes on behind it."""
    broken = True

    def brittle() -> str:
        """Break at first."""
        if broken:
            emit("breaking")
            raise LookupError("no \x1b[31m such thing")
        return "mended"

    swarm = make_anywhere(ScriptedModel([[call("brittle")], "Good."]))
    agent = Agent(name=unique(), functions=[brittle])
    run = swarm.start(agent, user())
    first = list(run.events())
    assert types(first)[-3:] == ["tool.started", "tool.progress", "run.failed"]
    assert first[-1].data == {"error_type": "LookupError", "error_message": "no \x1b[31m such thing"}
    broken = False
    run.resume()
    assert run.result().messages[-1]["content"] == "Good."
    more = list(run.events(after=len(first)))
    assert [kind for kind in types(more) if kind != "text.reset"] == [
        *("tool.finished", "turn.started", "text.delta", "run.finished")
    ]
    assert list(swarm.get(run.id).events()) == first + more


@pytest.mark.parametrize("shown", [0, 2])
def test_a_model_that_fails(make_anywhere: Make, shown: int) -> None:
    """Where the model fails for good, what was shown of its reply is void, and the run fails; then it goes on."""
    refusal = RuntimeError("no more")

    def replies(request: dict[str, Any]) -> Any:
        if len(model.calls) == 1:
            return cut("never mind this", after=shown + 1) if shown else refusal
        return refusal if len(model.calls) == 2 and shown else "At last."

    model = ScriptedModel(replies)
    model.max_retries = 1
    swarm = make_anywhere(model)
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    first = list(run.events())
    assert texts(first) == {}
    assert types(first)[-1] == "run.failed"
    run.resume()
    run.result()
    more = list(run.events(after=len(first)))
    assert list(swarm.get(run.id).events()) == first + more
    assert texts(first + more) == {0: "At last."}


def test_a_run_that_is_cancelled(make_anywhere: Make) -> None:
    """A run cancelled in mid-reply ends with `run.cancelled`, and what was shown is void; resumed, it goes on."""
    swarm = make_anywhere(ScriptedModel(lambda _: " ".join(["word"] * 60), pace=0.01))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    first = []
    for event in run.events():
        first.append(event)
        if event.type == "text.delta" and len(first) == 6:
            run.cancel()
    assert types(first)[-2:] == ["text.reset", "run.cancelled"]
    assert texts(first) == {}
    run.resume()
    run.result()
    more = list(run.events(after=len(first)))
    later = list(swarm.get(run.id).events())
    assert texts(later) == transcript(run)
    assert [event.type for event in later[len(first) :]] == types(more)
    assert texts(first + more) == transcript(run)


@pytest.mark.parametrize("how", ["a tool fails", "the model fails", "cancelled", "cancelled in mid-reply"])
def test_an_end_that_is_stored_is_told_once(make_anywhere: Make, how: str) -> None:
    """Whoever reads, or resumes, a run whose end another has just stored to resume it, is told of that end once."""
    broken = True

    def brittle() -> str:
        """Break at first, or wait."""
        if broken and how == "cancelled":
            run.cancel()
        if broken and how == "a tool fails":
            raise LookupError("no such thing")
        return "mended"

    def replies(request: dict[str, Any]) -> Any:
        if broken and how == "the model fails":
            return RuntimeError("no more")
        if broken and how == "cancelled in mid-reply":
            return " ".join(["word"] * 60)
        return "Good." if request["messages"][-1]["role"] == "tool" else [call("brittle")]

    swarm = make_anywhere(ScriptedModel(replies, pace=0.01))
    agent = Agent(name=unique(), functions=[brittle])
    run = swarm.start(agent, user())
    first = []
    for event in run.events():
        first.append(event)
        if broken and how == "cancelled in mid-reply" and event.type == "text.delta":
            run.cancel()
    for _ in range(2):
        RecordedEvents(swarm._store(), run.id).keep_end()
        assert types(list(swarm.get(run.id).events()))[len(first) - 1 :] == types(first)[-1:]
    broken = False
    run.resume()
    run.result()
    more = list(run.events(after=len(first)))
    ends = [kind for kind in types(list(swarm.get(run.id).events())) if kind in {"run.failed", "run.cancelled"}]
    assert ends == types(first)[-1:]
    assert types(more)[-1] == "run.finished"


def test_forks(make: Make) -> None:
    """A fork tells the turns it has kept as its own, and then what is new."""
    swarm = make(ScriptedModel([[call("stepped", text="x"), call("plain", text="y")], "First.", "Second."], pace=0.003))
    agent = Agent(name=unique(), functions=[stepped, plain])
    run = swarm.start(agent, user())
    run.result()
    fork = run.fork(1)
    assert fork.result().messages[-1]["content"] == "Second."
    events = list(fork.events())
    assert texts(events) == transcript(fork) == {1: "Second."}
    assert types(events).count("tool.finished") == 2
    assert events == list(swarm.get(fork.id).events())


def test_exported_runs_tell_their_story(make: Make) -> None:
    """An imported run has events; its texts come in one piece each, and masks keep nothing of what they mask."""
    swarm = make(ScriptedModel([[call("plain", text="4111")], "Your 4111 card is fine."], pace=0.01))
    agent = Agent(name=unique(), functions=[plain])
    run = swarm.start(agent, user())
    run.result()
    document = swarm.export(run.id, redact=lambda _, value: "x" if "4111" in str(value) else value)
    assert "4111" not in json.dumps(document)
    document["id"] = "copy"
    copy = swarm.import_run(document)
    assert texts(list(copy.events())) == transcript(copy) == {1: "x"}


def test_encrypted_events(make_anywhere: Make) -> None:
    """Rows of events are encrypted like all else; with the key they are told, without it nothing is."""
    secret = "canary " * 60
    swarm = make_anywhere(
        ScriptedModel([[call("plain", text="canary")], secret], pace=0.003), codec=EncryptionCodec(new_key())
    )
    agent = Agent(name=unique(), functions=[plain])
    run = swarm.start(agent, user())
    live = list(run.events())
    assert texts(live) == transcript(run)
    assert live == list(swarm.get(run.id).events())
    stored = rows(str(swarm._open().url.render_as_string(hide_password=False)), "value", "streams")
    assert stored
    assert not any("canary" in value for (value,) in stored)


def test_redacted_events(make: Make) -> None:
    """A codec that masks gets no text in pieces, which would hide what it looks for; events tell what is stored."""
    secret = "4111 2222 3333"

    def look() -> str:
        emit(secret)
        time.sleep(0.2)  # It is stored before the outcome is.
        emit(secret)
        return "seen"

    script = ScriptedModel([[call("look")], f"Your number is {secret}."], pace=0.02)
    swarm = make(script, codec=Redacting([r"\d{4} \d{4} \d{4}"]))

    agent = Agent(name=unique(), functions=[look])
    run = swarm.start(agent, user())
    live = list(run.events())
    assert texts(live) == {1: "Your number is [redacted]."}
    assert [data["progress"] for kind, data in told(live) if kind == "tool.progress"] == ["[redacted]"] * 2
    assert live == list(swarm.get(run.id).events())
    stored = rows(str(swarm._open().url), "value", "streams")
    assert stored
    assert not any(secret in value or "Your" in value for (value,) in stored)


def test_after_is_a_number(make: Make) -> None:
    """What is no number of an event is refused at once; a run that is not there is not found."""
    swarm = make(ScriptedModel(["Hi."]))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    for wrong in (-1, "1", None, True, 1.5):
        with pytest.raises(ConfigurationError, match="after must be the number"):
            run.events(after=wrong)  # type: ignore[arg-type]
    run.result()
    with connected(str(swarm._open().url)) as connection:
        connection.exec_driver_sql("DELETE FROM workflow_status")
    with pytest.raises(RunNotFound):
        list(run.events())


def test_emit_anywhere(make: Make) -> None:
    """Outside a run `emit` does nothing; what it cannot take is refused there too, and inside a tool."""
    emit("nobody listens")
    with pytest.raises(ConfigurationError, match="a text or a dictionary"):
        emit(5)  # type: ignore[arg-type]
    with pytest.raises(NotSerializable, match="emit"):
        emit({"a": object()})

    @step
    def inner() -> str:
        emit("in the step")
        return "ok"

    def outer() -> str:
        """Work."""
        with pytest.raises(NotSerializable):
            emit({"a": object()})
        threading.Thread(target=emit, args=("outside",)).start()
        return inner()

    swarm = make(ScriptedModel([[call("outer")], "Ok."]))
    agent = Agent(name=unique(), functions=[outer])
    run = swarm.start(agent, user())
    events = list(run.events())
    assert [data["progress"] for kind, data in told(events) if kind == "tool.progress"] == ["in the step"]


def test_texts_that_change_on_their_way(make: Make) -> None:
    """Pieces cut within a character are the same live and later, and half of a character becomes U+FFFD."""
    halves = ["a\ud83d", "\ude00b", "\0c", "\udc00"]
    chunks = [
        SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=text), finish_reason=None)])
        for text in halves
    ]
    chunks.append(SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(), finish_reason="stop")]))
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=lambda **_: iter(chunks))))
    swarm = make(client)
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    live = list(run.events())
    assert run.result().messages[0]["content"] == "a\U0001f600b\0c\ufffd"
    assert texts(live) == transcript(run)
    assert live == list(swarm.get(run.id).events())
