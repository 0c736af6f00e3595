"""Merging the chunks of a streamed answer: what each one shows, and the whole answer at the end.

Providers differ in their chunks, so nothing is assumed: chunks may be mappings, pydantic models or plain objects, tool
calls may arrive whole or letter by letter, with an index or without.
"""

from __future__ import annotations

import contextlib
import copy
import json
import reprlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import chain, groupby
from typing import Any

from pydantic import BaseModel

from durable_swarm.codec import mended_text
from durable_swarm.models.reply import (
    DATA,
    Answer,
    beside,
    checked,
    dumped,
    field,
    refuse_broken,
    refuse_error,
    sendable,
)
from durable_swarm.types import Message

_OURS = ("sender", "delim", "response")
"""Keys of Swarm's own dictionaries; a provider's fields must not be mistaken for them."""

_ABSENT = object()


class BrokenStream(Exception):
    """A streamed answer that ended too soon, or was not a stream; the same request may succeed later."""


class Unmarked(BrokenStream):
    """A stream without an end mark: it was cut, or its provider never marks the end."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Read a provider's JSON in this block; `BrokenStream` is raised for what only Python refuses in it."""
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (RecursionError, ValueError) as error:  # Nested too deep, or a number of thousands of digits.
        raise BrokenStream(f"the provider's answer cannot be read: {error}") from error


_SDK = {"httpx", "httpx2", "openai"}
_READS = {"json", "parse", "_parse", "_process_response", "__stream__"}
"""Functions in which the official client, and what it is made of, read an answer or its chunks."""


def unreadable(error: Exception) -> BrokenStream | None:
    """Return the error of `reading` for one that a wrapped client raised where it read a provider's answer, or None.

    The wrapper's own errors, and those of a request that cannot be sent, are the program's.
    """
    if not isinstance(error, RecursionError | ValueError):
        return None
    read = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        root = str(frame.f_globals.get("__name__")).partition(".")[0]
        if root in _SDK:
            read = read or frame.f_code.co_name in _READS
        elif root not in sys.stdlib_module_names and not root.startswith("pydantic"):
            read = False  # Code of the program, which the client has called.
    if not read:
        return None
    try:
        with reading():
            raise error
    except BrokenStream as broken:
        return broken
    except ValueError:
        return None


def whole(answer: object) -> Answer:
    """Return the relevant parts of an answer that was not streamed; some servers stream without being asked.

    Raises `EmptyReply`, `ErrorReply`, `BrokenStream`, `JSONDecodeError`.
    """
    if isinstance(answer, bytes):
        answer = answer.decode(errors="replace")
    if not isinstance(answer, str):
        return checked(answer)
    if answer.lstrip().startswith("{"):
        return checked(_decoded(answer))
    events = [line[5:].strip() for line in answer.splitlines() if line.startswith("data:")]
    if not events:
        return checked(answer)
    pieces = ReplyBuilder()
    for data in events:
        if data == "[DONE]":
            pieces.mark()
            break
        pieces.add(_decoded(data))
    return pieces.answer()


def _decoded(text: str) -> object:
    with reading():
        return json.loads(text)


class ReplyBuilder:
    """The chunks of one answer: `add` each chunk as it arrives, then read the `answer`."""

    def __init__(self) -> None:
        self._begun = self._met = self._marked = self._finished = False
        self._role_shown = False
        self._usage: object = None
        self._finish: object = None
        self._choice: object = None
        self._texts: dict[str, list[object]] = {}
        self._values: dict[str, object] = {}
        """Fields that are not texts, merged."""
        self._halves: dict[str, str] = {}
        """The half character at which a text ends so far."""
        self._calls = _Calls()

    def add(self, chunk: object) -> dict[str, object] | None:
        """Add a chunk and return its delta as plain data, reduced to what is new, or None.

        Each field of a tool call is returned once, arguments chunk by chunk; `index` distinguishes the calls. Raises
        `BrokenStream` for an object that is not a chunk.
        """
        self._begun = True
        refuse_error(chunk)
        usage = field(chunk, "usage")
        if usage is not None:
            self._usage = usage
        choice = _first_choice(chunk)
        if choice is None:
            return None
        self._choice = choice
        reason = field(choice, "finish_reason", _ABSENT)
        if reason is not _ABSENT:
            # Hand-written clients may omit the field; for them a clean end is all that can be required.
            self._marked = True
            self._finished = self._finished or bool(reason)
            self._finish = reason or self._finish
        delta = field(choice, "delta")
        # A gateway's own notes (of its content filter) arrive in choices without a delta.
        return None if delta is None else self._merge(delta)

    def _merge(self, delta: object) -> dict[str, object] | None:
        shown: dict[str, object] = {}
        for name, value in _fields(delta):
            if value is None or name in _OURS:
                continue
            seen = self._take(name, value)
            if seen and name != "provider":  # For the provider, not for the reader.
                shown[name] = seen
        self._met = True
        return shown or None

    def _take(self, name: str, value: object) -> object:
        """Keep the value of a field and return the part of it that is shown."""
        if name == "tool_calls":
            return self._calls.add(value)
        if name == "role":
            first, self._role_shown = not self._role_shown, True
            return "assistant" if first else None
        if isinstance(value, str) or name == "content":
            self._texts.setdefault(name, []).append(_text(value))
            return self._whole_characters(name, value) if isinstance(value, str) else value
        value = _plain(value)
        self._values[name] = merged(name, self._values.get(name), value)
        return copy.deepcopy(value)

    def _whole_characters(self, name: str, text: str) -> str:
        """Return what is new of a text, keeping back half a character until the other half arrives."""
        text = self._halves.pop(name, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._halves[name] = text[:-1], text[-1]
        return mended_text(text)

    def rest(self) -> dict[str, object] | None:
        """Return the last delta once the stream has ended: halves of characters whose other half never arrived."""
        halves, self._halves = self._halves, {}
        return {name: mended_text(half) for name, half in halves.items()} or None

    def mark(self) -> None:
        """Record that the provider has marked the end."""
        self._finished = True

    def answer(self) -> Answer:
        """Return the whole answer once the stream has ended. Raises `BrokenStream` if it is not whole."""
        if not self._begun:
            raise Unmarked("the provider's stream ended before its first chunk")
        texts = {name: _joined(pieces) for name, pieces in self._texts.items()}
        message: Message = {"role": "assistant", "content": None, **self._values, **texts}
        answer = Answer({**message, "tool_calls": self._calls.whole()}, self._usage, self._finish)
        refuse_broken(answer, self._choice)
        if not self._met:
            raise BrokenStream("the provider's stream has no message")
        if self._marked and not self._finished:
            raise Unmarked("the provider's stream ended in the middle of the answer")
        return answer


def _first_choice(chunk: object) -> object:
    """Return choice 0 of the chunk, or None, as in the last chunk, which counts the tokens."""
    choices = field(chunk, "choices", _ABSENT)
    if choices is _ABSENT and field(chunk, "usage") is not None:
        return None
    if choices is not None and not isinstance(choices, list | tuple):
        raise BrokenStream(f"the provider's stream contains something that is not a chunk: {_shortly(chunk)}")
    for choice in choices or ():
        if isinstance(choice, DATA):
            raise BrokenStream(f"the provider's stream contains something that is not a choice: {_shortly(choice)}")
        index = field(choice, "index")
        if not isinstance(index, int) or index == 0:
            return choice
    return None


def _fields(delta: object) -> Iterable[tuple[str, object]]:
    if isinstance(delta, BaseModel):
        # Not `model_dump`, which takes longer than everything else together.
        fields = vars(delta)
        return (fields | delta.model_extra if delta.model_extra else fields).items()
    if isinstance(delta, Mapping):
        return ((str(name), value) for name, value in delta.items())
    if isinstance(delta, DATA):
        raise BrokenStream(f"the provider's stream contains something that is not a delta: {_shortly(delta)}")
    # A mock has every attribute, so only types that can be part of a message count.
    own = {name: value for name, value in getattr(delta, "__dict__", {}).items() if isinstance(value, str)}
    known = {name: getattr(delta, name, None) for name in ("role", "content", "refusal", "tool_calls")}
    pieces = {name: value for name, value in known.items() if isinstance(value, str | list | tuple)}
    return ((name, value) for name, value in (own | pieces).items() if not name.startswith("_"))


def _plain(value: object) -> object:
    return dumped(value) if isinstance(value, BaseModel) else sendable(value)


def _text(value: object) -> str | list[object]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    raise BrokenStream(f"the provider's stream contains a content that is not a text: {_shortly(value)}")


def _joined(pieces: list[Any]) -> str | list[object]:
    """Join texts; if parts arrived too (thoughts, references), return the list of all parts."""
    if all(isinstance(piece, str) for piece in pieces):
        return mended_text("".join(pieces))
    parts: list[object] = []
    for kind, group in groupby(pieces, type):
        if kind is list:
            parts.extend(chain.from_iterable(group))
        elif text := mended_text("".join(group)):
            parts.append({"type": "text", "text": text})
    return parts


_SAME = {"id", "index", "type", "format", "object", "model", "name", "role", "version"}
"""Keys that are repeated with each piece of a value and are not pieces themselves."""


def merged(name: str, old: object, new: object) -> Any:
    """Return a streamed value with one more piece: texts joined, objects deep, list entries by their `index`."""
    if old is None or new is None:
        return copy.deepcopy(old if new is None else new)
    if isinstance(old, str) and isinstance(new, str) and name not in _SAME:
        return old + new
    if isinstance(old, dict) and isinstance(new, Mapping):
        return {key: merged(key, old.get(key), new.get(key)) for key in {**old, **new}}
    if isinstance(old, list) and isinstance(new, list | tuple):
        return _with_entries(old, new)
    return copy.deepcopy(new)


def _with_entries(old: Sequence[object], new: Iterable[object]) -> list[object]:
    entries = list(old)
    for entry in new:
        index = _index_of(entry)
        same = [at for at, known in enumerate(entries) if index is not None and _index_of(known) == index]
        if same:
            entries[same[0]] = merged("", entries[same[0]], entry)
        else:
            entries.append(copy.deepcopy(entry))
    return entries


def _index_of(entry: object) -> object:
    return entry.get("index") if isinstance(entry, Mapping) else None


@dataclass
class _Call:
    """A tool call that is still arriving; `number` is the index it is shown with."""

    number: int
    id: str = ""
    name: str = ""
    arguments: list[str] = dataclass_field(default_factory=list)
    beside: dict[str, object] = dataclass_field(default_factory=dict)
    """The fields beside id, type and function."""
    inside: dict[str, object] = dataclass_field(default_factory=dict)
    """The fields beside name and arguments."""
    custom: bool = False

    @property
    def text(self) -> str:
        """The arguments so far."""
        if len(self.arguments) > 1:
            self.arguments[:] = ["".join(self.arguments)]
        return self.arguments[0] if self.arguments else ""

    @property
    def is_whole(self) -> bool:
        """True if the arguments so far are a JSON object, so that nothing can follow."""
        try:
            return self.text.rstrip().endswith("}") and isinstance(json.loads(self.text), dict)
        except (ValueError, RecursionError):
            return False

    def repeats(self, arguments: str) -> bool:
        """Return True if a fragment's arguments add nothing new."""
        return arguments.strip() in ("", self.text.strip())

    def named(self, name: str, *, repeated: bool) -> str:
        """Add a name, or a piece of one, and return what is new; some servers repeat it with each piece.

        A second name is a piece only if nothing else of the call has arrived or is `repeated`.
        """
        new = "" if self.text or (repeated and name == self.name) else name
        self.name += new
        return new

    def as_read(self) -> dict[str, object]:
        """Return the whole call, in the form of one that was not streamed."""
        text = mended_text(self.text)
        inside = {"name": self.name, **({"input": text} if self.custom else {**self.inside, "arguments": text})}
        kind = "custom" if self.custom else "function"
        return {**self.beside, "id": self.id or None, "type": kind, kind: inside}


class _Calls:
    """The tool calls of one answer."""

    def __init__(self) -> None:
        self._all: list[_Call] = []
        self._at: dict[int, _Call] = {}

    def add(self, fragments: object) -> list[dict[str, object]]:
        """Add the fragments of one chunk and return what is new in each."""
        if not isinstance(fragments, list | tuple):
            raise BrokenStream(f"the provider's stream holds what are not tool calls: {_shortly(fragments)}")
        return [shown for fragment in fragments if len(shown := self._add(fragment)) > 1]

    def _add(self, fragment: object) -> dict[str, object]:
        if isinstance(fragment, DATA):
            raise BrokenStream(
                f"the provider's stream contains something that is not a tool call: {_shortly(fragment)}"
            )
        custom = field(fragment, "custom") if isinstance(fragment, Mapping | BaseModel) else None
        function, index = field(fragment, "function") if custom is None else custom, field(fragment, "index")
        given, name = str(field(fragment, "id") or ""), str(field(function, "name") or "")
        arguments = _arguments(field(function, "arguments" if custom is None else "input"))
        call = self._find(index, given, name, arguments)
        if call is None:
            call = self._open(index)
            call.custom = custom is not None
            shown: dict[str, object] = {"index": call.number, "id": given, "type": "function"}
        else:
            shown = {"index": call.number, "id": "" if call.id else given}
        named = call.named(name, repeated=bool(arguments or (given and given == call.id)))
        call.id = call.id or given
        if arguments.strip() and call.repeats(arguments) and call.is_whole:
            arguments = ""  # Some servers repeat the whole call in their last chunk.
        call.arguments.append(arguments)
        more = beside(fragment, ("id", "type", "function", "custom", "index"))
        within = beside(function, ("name", "arguments", "input"))
        call.beside, call.inside = merged("", call.beside, more), merged("", call.inside, within)
        said = {"name": named, "arguments": arguments}
        shown["function"] = {**within, **{key: text for key, text in said.items() if text}}
        return {**more, **{key: value for key, value in shown.items() if value or key == "index"}}

    def _find(self, index: object, given: str, name: str, arguments: str) -> _Call | None:
        """Return the call that a fragment belongs to, or None for a new call."""
        if isinstance(index, int):
            call = self._at.get(index)
            return None if call is not None and _is_another(call, given, name, arguments) else call
        if given:
            last = next((call for call in reversed(self._all) if call.id == given), None)
            return None if last is not None and _is_another(last, given, name, arguments) else last
        # Nothing distinguishes the calls except that a name does not follow arguments.
        last = self._all[-1] if self._all else None
        return None if last is not None and name and _is_over(last, name, arguments) else last

    def _open(self, index: Any) -> _Call:
        taken = [call.number for call in self._all]
        free = isinstance(index, int) and index >= 0 and index not in taken
        call = _Call(index if free else max(taken, default=-1) + 1)
        self._all.append(call)
        if isinstance(index, int):
            self._at[index] = call
        return call

    def whole(self) -> list[dict[str, object]] | None:
        """Return the calls in their order, or None if there are none."""
        return [call.as_read() for call in sorted(self._all, key=lambda call: call.number)] or None


def _is_another(call: _Call, given: str, name: str, arguments: str) -> bool:
    """Return True if a fragment with the index, or the id, of this call belongs to another one.

    Some providers send every call whole, all of them as number 0 or under one id.
    """
    if not call.name or not name:
        return False
    if call.id and given and given != call.id:
        return True
    again = name == call.name and call.repeats(arguments)
    return bool(arguments.strip()) and not again and call.is_whole


def _is_over(call: _Call, name: str, arguments: str) -> bool:
    """Return True if the last call is complete and a name without index and id begins another."""
    if name != call.name:
        return bool(call.text)
    # The name may only be repeated, because incomplete arguments still continue.
    return bool(arguments.strip()) and call.is_whole


def _arguments(given: object) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    try:
        return json.dumps(given)
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenStream(f"the provider's stream holds arguments that are not JSON: {_shortly(given)}") from error


def _shortly(thing: object) -> str:
    return reprlib.repr(thing)
