"""Merging streamed chunks, of every shape and cut at every place, to one message or to `BrokenStream`."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from durable_swarm import codec
from durable_swarm.models.reply import ErrorReply, read_message, read_usage
from durable_swarm.models.stream import BrokenStream, ReplyBuilder
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.shapes import Chunk
from durable_swarm.types import Usage
from tests.support.chunks import chunk, merge, part, put_together, shown, stream

END: dict[str, Any] = {}


def calls_of(*deltas: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Give the id, name and arguments of each call that the deltas come to."""
    found = merge(stream(*deltas))["tool_calls"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in found]


def namespaces(value: Any) -> Any:
    """Give nested dictionaries as objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: namespaces(item) for key, item in value.items()})
    return [namespaces(item) for item in value] if isinstance(value, list) else value


class Slotted:
    """A delta of a client's own class, without a dictionary."""

    __slots__ = ("content",)

    def __init__(self, content: str | None) -> None:
        self.content = content


SHAPES: dict[str, Any] = {
    "dict": dict,
    "mapping": UserDict,
    "namespace": namespaces,
    "pydantic": Chunk.model_validate,
    "openai": lambda data: ChatCompletionChunk.construct(**data),
    "openai, validated": ChatCompletionChunk.model_validate,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_of_every_shape_are_read(shape: str) -> None:
    """Dictionaries, mappings, plain objects and pydantic models of any kind give one and the same message."""
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m"},
        {"content": "Hi"},
        {"content": " Ada"},
        part(0, "c1", "add", ""),
        part(0, text='{"a"'),
        part(0, text=": 1}"),
    ]
    counted = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chunks = [SHAPES[shape](item) for item in [*stream(*deltas), {**chunk(END), "choices": [], "usage": counted}]]
    pieces = ReplyBuilder()
    seen = [pieces.add(item) for item in chunks]
    message = read_message(pieces.answer().message, 0)
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert message == {
        "role": "assistant",
        "content": "Hi Ada",
        "reasoning_content": "Hmm",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert read_usage(pieces.answer()) == Usage(requests=1, **counted)
    assert seen == [
        {"role": "assistant"},
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m"},
        {"content": "Hi"},
        {"content": " Ada"},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        None,
        None,
    ]
    assert codec.round_trip(message) == message
    assert codec.round_trip(seen) == seen


def test_objects_without_a_dictionary_are_read() -> None:
    """A client's own classes may hold their fields in slots."""
    pieces = [SimpleNamespace(choices=[SimpleNamespace(delta=Slotted(text))]) for text in ("Hi", None, " Ada")]
    assert merge(pieces)["content"] == "Hi Ada"


def test_a_stream_cut_anywhere_is_broken() -> None:
    """However many chunks came, a stream that ends before its finish reason is no answer."""
    whole = stream({"role": "assistant", "content": ""}, {"content": "Hi"}, part(0, "c1", "add"), part(0, text="{}"))
    for length in range(len(whole)):
        with pytest.raises(BrokenStream, match="in the middle" if length else "before its first chunk"):
            merge(whole[:length])
    assert merge(whole)["content"] == "Hi"


def test_clients_that_know_no_finish_reason() -> None:
    """Where chunks have no field for the finish reason at all, the end of the stream is the end."""
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in ("Hi", " Ada")]
    assert merge(chunks)["content"] == merge(namespaces(chunks))["content"] == "Hi Ada"
    with pytest.raises(BrokenStream, match="in the middle"):
        merge([*chunks, chunk({"content": "!"})])


@pytest.mark.parametrize(
    "chunks",
    [
        [{"choices": []}],
        [{"choices": None}],
        [{"usage": {"total_tokens": 1}}],
        [chunk(None, "stop")],
        [chunk({"content": "other"}, "stop", index=1)],
    ],
)
def test_a_stream_without_a_message_is_broken(chunks: list[Any]) -> None:
    """Chunks that never bring a delta of choice 0 are no answer."""
    assert shown(chunks) == [None]
    with pytest.raises(BrokenStream, match="has no message"):
        merge(chunks)


def test_an_empty_message_is_a_message() -> None:
    """A model may answer with nothing: no content is None, and empty content is an empty text."""
    assert merge(stream({"role": "assistant"}))["content"] is None
    assert merge(stream({"role": "assistant", "content": ""}))["content"] == ""
    assert merge(stream({"content": None}))["tool_calls"] is None


def test_usage_is_the_last_that_was_counted() -> None:
    """Tokens are read wherever they stand, with choices or without; the last count is the one of the whole answer."""
    first, last = ({"prompt_tokens": 1, "completion_tokens": n, "total_tokens": n + 1} for n in (1, 2))
    pieces = ReplyBuilder()
    for item in [chunk({"content": "Hi"}, usage=first), chunk(END, "stop", usage=last), {"usage": None, "choices": []}]:
        pieces.add(item)
    assert read_usage(pieces.answer()) == Usage(requests=1, prompt_tokens=1, completion_tokens=2, total_tokens=3)
    pieces = ReplyBuilder()
    for item in stream({"content": "Hi"}):
        pieces.add(item)
    assert read_usage(pieces.answer()) is None


def test_a_call_split_at_every_character() -> None:
    """Name and arguments may come letter by letter."""
    letters = [part(0, name=letter) for letter in "add"] + [part(0, text=letter) for letter in '{"aa": 11}']
    assert calls_of(part(0, "c1"), *letters) == [("c1", "add", '{"aa": 11}')]


def test_calls_that_come_in_turns() -> None:
    """The pieces of two calls may alternate: the index tells them apart, and orders them."""
    deltas = [part(1, "b", "sub"), part(0, "a", "add"), part(1, text="{"), part(0, text="["), part(1, text="}")]
    assert calls_of(*deltas, part(0, text="]")) == [("a", "add", "[]"), ("b", "sub", "{}")]
    together = {"tool_calls": part(0, text="1")["tool_calls"] + part(1, text="2")["tool_calls"]}
    assert calls_of(*deltas, together) == [("a", "add", "[1"), ("b", "sub", "{}2")]


def test_fragments_without_an_index() -> None:
    """Without an index a new id opens a call, a known one goes on with its own, and none with the last."""
    deltas = [part(None, "a", "add", "{"), part(text="}"), part(None, "b", "sub"), part(text="[")]
    more = [part(None, "a", text=" "), part(None, "b", text="]"), part(text="\n")]
    assert calls_of(*deltas, *more) == [("a", "add", "{} "), ("b", "sub", "[]\n")]


def test_calls_without_index_and_id() -> None:
    """Calls that nothing tells apart are told apart by their names: none comes after arguments."""
    deltas = [part(name="add", text={"a": 1}), part(name="s"), part(name="ub", text="{"), part(text="}")]
    assert calls_of(*deltas) == [("call_0_0", "add", '{"a": 1}'), ("call_0_1", "sub", "{}")]


def test_whole_calls_in_one_chunk() -> None:
    """A provider may send every call whole, all in one chunk."""
    calls = [part(number, f"c{number}", "add", "{}")["tool_calls"][0] for number in range(3)]
    assert calls_of({"tool_calls": calls}) == [(f"c{number}", "add", "{}") for number in range(3)]


def test_whole_calls_that_are_all_number_zero() -> None:
    """Where every call is said to be the first, another id with a name is another call, and is shown as one."""
    deltas = [part(0, "a", "add", "{}"), part(0, "b", "sub", "{"), part(0, text="}"), part(1, "c", "mul", "{}")]
    expected = [("a", "add", "{}"), ("b", "sub", "{}"), ("c", "mul", "{}")]
    assert calls_of(*deltas) == expected
    assert put_together(shown(stream(*deltas)))["calls"] == expected


def test_repeated_ids_and_roles_are_shown_once() -> None:
    """A provider that repeats role and id with every piece changes neither the message nor what is shown."""
    deltas = [{"role": "assistant", "content": text} for text in ("Hi", " Ada", None)]
    fragments = [part(0, "c1", "add"), part(0, "c1", text="{"), part(0, "c1", text="}"), part(0, "c1", text="")]
    assert calls_of(*deltas, *fragments) == [("c1", "add", "{}")]
    seen = shown(stream(*deltas, *fragments))
    assert put_together(seen) == {"role": "assistant", "content": "Hi Ada", "calls": [("c1", "add", "{}")]}
    assert seen[2] is None
    assert seen[-2:] == [None, None]


@pytest.mark.parametrize(
    ("given_arguments", "read"), [(None, ""), ({"a": 1}, '{"a": 1}'), ("", ""), ([1], "[1]"), ("{", "{")]
)
def test_arguments_become_text(given_arguments: Any, read: str) -> None:
    """Arguments that come as data become JSON text; none are an empty text."""
    delta = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "add", "arguments": given_arguments}}]}
    assert calls_of(delta) == [("c", "add", read)]


def test_a_call_without_a_name_is_kept() -> None:
    """A call that never got a name is there with an empty one, and one without an id gets an id."""
    found = calls_of(part(0, "c1", text="{}"), {"tool_calls": [{"index": 1}]})
    assert found == [("c1", "", "{}"), ("call_0_1", "", "")]


def test_only_the_first_choice_counts() -> None:
    """Of several choices that come in turns or together, number 0 is merged and shown."""
    both = chunk({"content": " Ada"})
    both["choices"].insert(0, {"index": 1, "delta": {"content": "no"}, "finish_reason": None})
    chunks = [chunk({"content": "no"}, index=1), chunk({"content": "Hi"}), both, chunk(END, "stop", index=1)]
    with pytest.raises(BrokenStream, match="in the middle"):
        merge(chunks)
    assert merge([*chunks, chunk(END, "stop")])["content"] == "Hi Ada"
    assert shown(chunks) == [None, {"content": "Hi"}, {"content": " Ada"}, None]


def test_fields_of_a_vendors_own() -> None:
    """Texts of a vendor's own fields are joined, of other values the last stays; nobody may choose role or speaker."""
    first = {"thought": "a", "score": 1, "role": "user", "sender": "X", "nothing": None}
    assert merge(stream(first, {"thought": "b", "score": {"of": 2}})) == {
        "role": "assistant",
        "content": None,
        "score": {"of": 2},
        "thought": "ab",
        "tool_calls": None,
    }
    assert shown(stream(first))[0] == {"thought": "a", "score": 1, "role": "assistant"}


def test_a_refusal_is_a_text_like_any_other() -> None:
    """The pieces of a refusal are shown and joined."""
    chunks = [Chunk.model_validate(item) for item in stream({"refusal": "I may"}, {"refusal": " not"})]
    assert merge(chunks)["refusal"] == "I may not"
    assert shown(chunks) == [{"refusal": "I may"}, {"refusal": " not"}, None]


def test_content_in_parts() -> None:
    """Content that comes as parts stays a list of parts, in which texts that came as texts are parts too."""
    thought = {"type": "thinking", "thinking": "Hm"}
    deltas = [{"content": ""}, {"content": [thought]}, {"content": "Hi"}, {"content": " Ada"}]
    assert merge(stream(*deltas))["content"] == [thought, {"type": "text", "text": "Hi Ada"}]


def test_a_pair_of_surrogates_may_be_cut() -> None:
    """A character whose two halves come in two chunks is one character of the message; a lone one is U+FFFD."""
    assert merge(stream({"content": "a\ud83d"}, {"content": "\ude00b"}))["content"] == "a😀b"
    assert merge(stream({"content": "a\ud83d"}))["content"] == "a\ufffd"
    assert merge(stream({"content": "\ude00a"}))["content"] == "\ufffda"
    assert calls_of(part(0, "c", "add", "\ud83d"), part(0, text="\ude00")) == [("c", "add", "😀")]


NO_CHUNKS: dict[str, tuple[Any, str]] = {
    "none": (None, "not a chunk: None"),
    "text": ("<html>", "not a chunk: '<html>'"),
    "number": (5, "not a chunk: 5"),
    "choices of text": ({"choices": "many"}, "not a chunk"),
    "choice of text": ({"choices": ["one"]}, "not a choice: 'one'"),
    "choice of nothing": ({"choices": [None]}, "not a choice: None"),
    "delta of text": ({"choices": [{"delta": "Hi"}]}, "not a delta: 'Hi'"),
    "content of numbers": (chunk({"content": 5}), "not a text: 5"),
    "calls of text": (chunk({"tool_calls": "add"}), "not tool calls: 'add'"),
    "call of text": (chunk({"tool_calls": ["add"]}), "not a tool call: 'add'"),
    "arguments of objects": (chunk(part(0, text=object())), "arguments that are not JSON"),
}


@pytest.mark.parametrize("kind", NO_CHUNKS)
def test_what_is_no_chunk_is_told(kind: str) -> None:
    """Whatever else a stream holds ends it, with an error that says what was found."""
    item, told = NO_CHUNKS[kind]
    with pytest.raises(BrokenStream, match=told):
        ReplyBuilder().add(item)


def test_an_error_in_a_stream_is_told() -> None:
    """An error in place of a chunk is the provider's, in its own words."""
    with pytest.raises(ErrorReply, match="overloaded"):
        ReplyBuilder().add({"error": {"message": "overloaded"}})


@st.composite
def cuts(draw: st.DrawFn, text: str) -> list[str]:
    """Give the text in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def interleaved(draw: st.DrawFn, lanes: list[list[Any]]) -> list[Any]:
    """Give all items of the lanes in one list, each lane in its own order."""
    order = draw(st.permutations([number for number, lane in enumerate(lanes) for _ in lane]))
    rest = [iter(lane) for lane in lanes]
    return [next(rest[number]) for number in order]


@st.composite
def fragments_of(draw: st.DrawFn, index: int | None, call_id: str, name: str, arguments: str) -> list[Any]:
    """Give a call in fragments, which may repeat its id."""
    again = call_id if draw(st.booleans()) else None
    names = [part(index, again, name=piece) for piece in draw(cuts(name))]
    return [part(index, call_id), *names, *[part(index, again, text=piece) for piece in draw(cuts(arguments))]]


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, Any], list[Any]]:
    """Give a message, and the chunks of one of its streams."""
    texts = draw(st.fixed_dictionaries({"content": st.none() | st.text()}, optional={"reasoning_content": st.text()}))
    made = draw(st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=4))
    indexed = draw(st.booleans())
    lanes = [[{name: piece} for piece in draw(cuts(text))] for name, text in texts.items() if text is not None]
    calls = [
        draw(fragments_of(number if indexed else None, f"c{number}", name, arguments))
        for number, (name, arguments) in enumerate(made)
    ]
    # Without an index only the order tells whose a fragment is.
    lanes += calls if indexed else [[fragment for fragments in calls for fragment in fragments]]
    called = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(made)
    ]
    message = {"role": "assistant", **texts, "tool_calls": called or None}
    shape = SHAPES[draw(st.sampled_from(["dict", "namespace", "openai"]))]
    return message, [shape(item) for item in stream({"role": "assistant"}, *draw(interleaved(lanes)))]


@given(streams())
def test_any_message_cut_anywhere_is_the_same_message(made: tuple[dict[str, Any], list[Any]]) -> None:
    """Cut into any pieces, in any order that keeps each text's own, a message is merged and shown as it was."""
    message, chunks = made
    assert merge(chunks) == message
    seen = put_together(shown(chunks))
    assert seen.get("content", "") == (message["content"] or "")
    assert seen["calls"] == [
        (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"] or ()
    ]


TOP = ["choices", "delta", "index", "finish_reason", "usage", "total_tokens"]
INNER = ["content", "tool_calls", "function", "name", "arguments", "id", "role", "x"]
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TOP + INNER), inner, max_size=4)
        | st.dictionaries(st.sampled_from(TOP + INNER), inner, max_size=4).map(lambda some: SimpleNamespace(**some))
    ),
    max_leaves=12,
)
DELTAS = st.fixed_dictionaries(
    {}, optional={"content": GARBAGE, "role": GARBAGE, "x": GARBAGE, "tool_calls": st.lists(GARBAGE) | GARBAGE}
)
CHUNKS = st.builds(chunk, DELTAS | GARBAGE, GARBAGE, GARBAGE)


@given(st.lists(GARBAGE | CHUNKS, max_size=5))
def test_garbage_is_a_message_or_broken(chunks: list[Any]) -> None:
    """Whatever a stream holds, it ends in a message or in `BrokenStream`, never in another error."""
    pieces = ReplyBuilder()
    try:
        for item in chunks:
            pieces.add(item)
        answer = pieces.answer()
    except BrokenStream:
        return
    assert read_message(answer.message, 0)["role"] == "assistant"
    usage = read_usage(answer)
    assert usage is None or usage.requests == 1


def test_the_scripted_models_chunks() -> None:
    """What the scripted model streams is merged to what it says unstreamed."""
    reply: Any = {"content": "Hi there", "tool_calls": [("add", '{"a": 1}'), ("sub", "{")], "reasoning_content": "Hm"}
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    whole = ScriptedModel([reply]).chat.completions.create(**asked)
    streamed = ScriptedModel([reply]).chat.completions.create(**asked, stream=True)
    assert merge(list(streamed)) == read_message(whole.choices[0].message, 0)
