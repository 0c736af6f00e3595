"""Calling a client: Swarm's own call, or a faster form for the official client.

The official client walks every message of every request in Python, but sends `extra_body` as it is; a long history is
therefore passed there. Of every answer, and of every chunk of a stream, it makes a model, which takes longer than
everything else about a chunk; they are therefore read as the plain data that was sent. Both only if nothing can notice:
a wrapper that a program, a tracer or a guard has put around `create`, on the instance, on the class or in a subclass,
is called as Swarm calls it, and sees every message and every model.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from durable_swarm.models.stream import reading

_BELOW = ("post", "request", "_build_request", "copy", "with_options")
"""Methods that the official client calls on itself on the way to the provider, and those it is copied with."""


def is_openai(client: object) -> bool:
    """Return True if it is a client of the `openai` package, which is imported only if the program uses it."""
    openai = sys.modules.get("openai")
    return openai is not None and isinstance(client, (openai.OpenAI, openai.AsyncOpenAI))


def is_bare(client: Any) -> bool:
    """Return True if it is an official client with nothing of another library between it and the provider."""
    if not is_openai(client) or not is_official(type(client)):
        return False
    chat = client.chat
    if not is_official(type(chat)) or not _is_untouched(type(client), "chat"):
        return False
    completions = chat.completions
    if not is_official(type(completions)) or not _is_untouched(type(chat), "completions"):
        return False
    post = vars(completions).get("_post")
    own = isinstance(post, MethodType) and post.__self__ is client and is_official(post.__func__)
    untouched = all(_is_untouched(type(client), name) and name not in vars(client) for name in _BELOW)
    return own and untouched and "create" not in vars(completions) and _is_untouched(type(completions), "create")


def _is_untouched(kind: type, name: str) -> bool:
    """Return True if a method or a property of a class is the `openai` package's own."""
    found = inspect.getattr_static(kind, name, None)
    return is_official(getattr(found, "func", None) or getattr(found, "fget", None) or found)


def is_official(thing: object) -> bool:
    """Return True if a class or a function, with everything it wraps, is defined in the `openai` package."""
    if isinstance(thing, type):
        return _root(thing.__module__) == "openai"
    while type(thing) is FunctionType:  # A proxy of another type only claims to be a function.
        # A wrapper copies the name of the wrapped function, but not its globals.
        if _root(str(thing.__globals__.get("__name__"))) != "openai":
            return False
        if "__wrapped__" not in vars(thing):
            return True
        thing = vars(thing)["__wrapped__"]
    return False


def _root(module: str) -> str:
    return module.partition(".")[0]


def prepared(client: Any, request: dict[str, Any]) -> tuple[Callable[..., object], dict[str, object]]:
    """Return the function to call and its arguments, without those that a client of `openai` would not send."""
    if not is_openai(client):
        return client.chat.completions.create, request
    given = {key: value for key, value in request.items() if value is not None}
    if not is_bare(client):
        return client.chat.completions.create, given
    body = {key: given.pop(key) for key in ("messages", "tools") if key in given}
    body.update(given.pop("extra_body", {}))
    # Without its own retries, over the same connections.
    bare = client.with_options(max_retries=0)
    create = _as_data(bare.chat.completions.with_raw_response.create, bool(given.get("stream")))
    return create, {**given, "messages": [], "extra_body": body}


def _as_data(create: Callable[..., Any], streamed: bool) -> Callable[..., object]:
    """Return the function that makes a request and returns the answer, or an iterator of its chunks, as plain data."""
    from openai import AsyncStream, Stream

    def ask(**arguments: object) -> object:
        response = create(**arguments)
        with reading():
            return _chunks(response.parse(to=Stream[object])) if streamed else response.parse(to=object)

    async def ask_async(**arguments: object) -> object:
        response = await create(**arguments)
        with reading():
            parsed = response.parse(to=AsyncStream[object] if streamed else object)
            if inspect.isawaitable(parsed):  # As the client announces of its next major version.
                parsed = await parsed
        return _chunks_async(parsed) if streamed else parsed

    return ask_async if inspect.iscoroutinefunction(create) else ask


def _chunks(stream: Any) -> Iterator[object]:
    try:
        with reading():
            for chunk in stream:
                yield _with_fields(chunk)
    finally:
        stream.close()


async def _chunks_async(stream: Any) -> AsyncIterator[object]:
    try:
        with reading():
            async for chunk in stream:
                yield _with_fields(chunk)
    finally:
        await stream.close()


def _with_fields(chunk: object) -> object:
    """Return a chunk with the fields that the client's models always have: what was not sent is None."""
    if not isinstance(chunk, dict):
        return chunk
    choices = chunk.get("choices")
    if isinstance(choices, list):
        choices = [{"finish_reason": None, **one} if isinstance(one, Mapping) else one for one in choices]
    return {**chunk, "choices": choices}


def retries_itself(client: object) -> bool:
    """Return True if the client itself retries failures before an answer begins."""
    return is_openai(client) and not is_bare(client)
