"""Merging the chunks of a streamed answer: what each one shows, and the whole answer at the end.

Providers differ in what their chunks hold, so nothing is taken for granted: chunks may be mappings, pydantic models or
plain objects, tool calls may come whole or letter by letter, with an index or without.
"""

from __future__ import annotations

import copy
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import chain, groupby
from typing import Any

from pydantic import BaseModel

from durable_swarm.answers import Answer, checked, field, refuse_broken, refuse_error
from durable_swarm.types import Message

_DATA = (str, bytes, int, float, list, tuple, set, type(None))
"""What holds no fields, and so is no part of a chunk."""

_OURS = ("sender", "delim", "response")
"""Keys of Swarm's own dictionaries, which a provider's fields must not pass for."""

_ABSENT = object()


class BrokenStream(Exception):
    """A streamed answer that ended too soon, or was none; the same request may succeed later."""


class Unmarked(BrokenStream):
    """A stream without a word of its end: it was cut, or its provider never marks the end."""


def whole(answer: Any) -> Answer:
    """Return what matters of an answer that was not streamed; some servers stream although nobody asked for it.

    Raises `EmptyReply`, `ErrorReply`, `BrokenStream`, `JSONDecodeError`.
    """
    if isinstance(answer, bytes):
        answer = answer.decode(errors="replace")
    if not isinstance(answer, str):
        return checked(answer)
    if answer.lstrip().startswith("{"):
        return checked(json.loads(answer))
    events = [line[5:].strip() for line in answer.splitlines() if line.startswith("data:")]
    if not events:
        return checked(answer)
    pieces = Pieces()
    for data in events:
        if data == "[DONE]":
            pieces.mark()
            break
        pieces.add(json.loads(data))
    return pieces.answer()


class Pieces:
    """The pieces of one answer: `add` each chunk as it comes, then take the `answer`."""

    def __init__(self) -> None:
        self._begun = self._met = self._marked = self._finished = False
        self._role_shown = False
        self._usage: Any = None
        self._finish: Any = None
        self._choice: Any = None
        self._texts: dict[str, list[Any]] = {}
        self._values: dict[str, Any] = {}
        self._halves: dict[str, str] = {}
        """The half of a character with which a text ends so far."""
        self._calls = _Calls()

    def add(self, chunk: Any) -> dict[str, Any] | None:
        """Take a chunk, and give its delta as plain data: only what says something, or None.

        Each field of a tool call is given once, arguments piece by piece; `index` tells the calls apart. Raises
        `BrokenStream` for what is no chunk.
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
            # Hand-written clients may leave the field out altogether; of them, a clean end is all that can be asked.
            self._marked = True
            self._finished = self._finished or bool(reason)
            self._finish = reason or self._finish
        delta = field(choice, "delta")
        # A gateway's own notes (of its content filter) come in choices without a delta.
        return None if delta is None else self._merge(delta)

    def _merge(self, delta: Any) -> dict[str, Any] | None:
        shown: dict[str, Any] = {}
        for name, value in _fields(delta):
            if value is None or name in _OURS:
                continue
            seen = self._take(name, value)
            if seen:
                shown[name] = seen
        self._met = True
        return shown or None

    def _take(self, name: str, value: Any) -> Any:
        """Keep the value of a field, and give what of it is shown."""
        if name == "tool_calls":
            return self._calls.add(value)
        if name == "role":
            first, self._role_shown = not self._role_shown, True
            return "assistant" if first else None
        if isinstance(value, str) or name == "content":
            self._texts.setdefault(name, []).append(_text(value))
            return self._whole_characters(name, value) if isinstance(value, str) else value
        self._values[name] = _plain(value)
        return copy.deepcopy(self._values[name])

    def _whole_characters(self, name: str, text: str) -> str:
        """Give what is new of a text, keeping back half a character until the other half comes."""
        text = self._halves.pop(name, "") + text
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._halves[name] = text[:-1], text[-1]
        return _mended(text)

    def mark(self) -> None:
        """Take in that the provider has said that this is all."""
        self._finished = True

    def answer(self) -> Answer:
        """Return the whole answer, once the stream has ended. Raises `BrokenStream` where it is not whole."""
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


def _first_choice(chunk: Any) -> Any:
    """Give choice 0 of the chunk, or None where it has none, as the last one, which counts the tokens."""
    choices = field(chunk, "choices", _ABSENT)
    if choices is _ABSENT and field(chunk, "usage") is not None:
        return None
    if choices is not None and not isinstance(choices, list | tuple):
        raise BrokenStream(f"the provider's stream holds what is no chunk: {_shortly(chunk)}")
    for choice in choices or ():
        if isinstance(choice, _DATA):
            raise BrokenStream(f"the provider's stream holds what is no choice: {_shortly(choice)}")
        index = field(choice, "index")
        if not isinstance(index, int) or index == 0:
            return choice
    return None


def _fields(delta: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(delta, BaseModel):
        # Not `model_dump`, which takes longer than all the rest together.
        fields = vars(delta)
        return (fields | delta.model_extra if delta.model_extra else fields).items()
    if isinstance(delta, Mapping):
        return ((str(name), value) for name, value in delta.items())
    if isinstance(delta, _DATA):
        raise BrokenStream(f"the provider's stream holds what is no delta: {_shortly(delta)}")
    # A mock answers to every name, so only what can be a piece of a message counts.
    own = {name: value for name, value in getattr(delta, "__dict__", {}).items() if isinstance(value, str)}
    known = {name: getattr(delta, name, None) for name in ("role", "content", "refusal", "tool_calls")}
    pieces = {name: value for name, value in known.items() if isinstance(value, str | list | tuple)}
    return ((name, value) for name, value in (own | pieces).items() if not name.startswith("_"))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _text(value: Any) -> str | list[Any]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    raise BrokenStream(f"the provider's stream holds a content that is no text: {_shortly(value)}")


def _joined(pieces: list[Any]) -> str | list[Any]:
    """Give texts as one text; where parts came too (thoughts, references), the list of all parts."""
    if all(isinstance(piece, str) for piece in pieces):
        return _mended("".join(pieces))
    parts: list[Any] = []
    for kind, group in groupby(pieces, type):
        if kind is list:
            parts.extend(chain.from_iterable(group))
        elif text := _mended("".join(group)):
            parts.append({"type": "text", "text": text})
    return parts


def _mended(text: str) -> str:
    """Give the text with its surrogate pairs joined: a chunk may end within a pair."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@dataclass
class _Call:
    """A tool call that is still coming in; `number` is the index it is shown with."""

    number: int
    id: str = ""
    name: str = ""
    arguments: list[str] = dataclass_field(default_factory=list)


class _Calls:
    """The tool calls of one answer."""

    def __init__(self) -> None:
        self._all: list[_Call] = []
        self._at: dict[int, _Call] = {}

    def add(self, fragments: Any) -> list[dict[str, Any]]:
        """Take the fragments of one chunk, and give what each says that is new."""
        if not isinstance(fragments, list | tuple):
            raise BrokenStream(f"the provider's stream holds what are no tool calls: {_shortly(fragments)}")
        return [shown for fragment in fragments if len(shown := self._add(fragment)) > 1]

    def _add(self, fragment: Any) -> dict[str, Any]:
        if isinstance(fragment, _DATA):
            raise BrokenStream(f"the provider's stream holds what is no tool call: {_shortly(fragment)}")
        function, index = field(fragment, "function"), field(fragment, "index")
        given, name = str(field(fragment, "id") or ""), str(field(function, "name") or "")
        call = self._find(index, given, name)
        if call is None:
            call = self._open(index)
            shown: dict[str, Any] = {"index": call.number, "id": given, "type": "function"}
        else:
            shown = {"index": call.number, "id": "" if call.id else given}
        call.id = call.id or given
        call.name += name
        arguments = _arguments(field(function, "arguments"))
        call.arguments.append(arguments)
        said = {"name": name, "arguments": arguments}
        shown["function"] = {key: text for key, text in said.items() if text}
        return {key: value for key, value in shown.items() if value or key == "index"}

    def _find(self, index: Any, given: str, name: str) -> _Call | None:
        """Find the call that a fragment belongs to; None is a new one."""
        if isinstance(index, int):
            call = self._at.get(index)
            # Some providers send every call whole, and all of them as number 0.
            other = call is not None and call.id and call.name and name and given and given != call.id
            return None if other else call
        if given:
            return next((call for call in self._all if call.id == given), None)
        # Nothing tells the calls apart but that a name does not come after arguments.
        last = self._all[-1] if self._all else None
        return None if last is not None and name and any(last.arguments) else last

    def _open(self, index: Any) -> _Call:
        taken = [call.number for call in self._all]
        free = isinstance(index, int) and index >= 0 and index not in taken
        call = _Call(index if free else max(taken, default=-1) + 1)
        self._all.append(call)
        if isinstance(index, int):
            self._at[index] = call
        return call

    def whole(self) -> list[dict[str, Any]] | None:
        """Give the calls in their order, None where there are none."""
        return [
            {
                "id": call.id or None,
                "type": "function",
                "function": {"name": call.name, "arguments": _mended("".join(call.arguments))},
            }
            for call in sorted(self._all, key=lambda call: call.number)
        ] or None


def _arguments(given: Any) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    try:
        return json.dumps(given)
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenStream(f"the provider's stream holds arguments that are no JSON: {_shortly(given)}") from error


def _shortly(thing: Any) -> str:
    return reprlib.repr(thing)
