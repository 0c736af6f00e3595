"""A chat request in the form of OpenAI's Responses API: settings, tools, and the history as items.

The data that the API needs back with a reply (mainly reasoning) is in its message under `provider`, as items without
the message's own texts and calls; here they are put together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from durable_swarm.errors import ConfigurationError

KIND = "openai-responses"
"""The kind of provider to which the items of a message are sent."""

_RENAMED = {"max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens"}
_ABSENT = {
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "modalities", "prediction",
    "presence_penalty", "seed", "stop", "web_search_options",
}  # fmt: skip
"""Settings of chat completions that the Responses API does not have."""
_DROPPED = {"messages", "tools", "tool_choice", "response_format", "verbosity", "reasoning_effort", "stream_options"}
REASONING = "reasoning.encrypted_content"


def responses_request(request: Mapping[str, Any], *, background: bool) -> dict[str, Any]:
    """Return the arguments of `responses.create`. Raises `ConfigurationError` for settings that it does not have."""
    given = {name: value for name, value in request.items() if value is not None}
    if absent := sorted(given.keys() & _ABSENT):
        raise ConfigurationError(
            f"the Responses API has no {absent[0]!r}; take it out of model_settings, or ask by chat completions"
        )
    if given.pop("n", 1) != 1:
        raise ConfigurationError("the Responses API gives one answer; take 'n' out of model_settings")
    sent = {_RENAMED.get(name, name): value for name, value in given.items() if name not in _DROPPED}
    sent |= _history(given.get("messages") or [])
    if tools := given.get("tools"):
        sent["tools"] = [_tool(tool) for tool in tools]
    if (choice := given.get("tool_choice")) is not None:
        sent["tool_choice"] = _choice(choice)
    sent |= _settings(given)
    sent["include"] = [*dict.fromkeys([*_list(given.get("include")), *_logprobs(sent), REASONING])]
    sent.setdefault("store", background)
    if background:
        if not sent["store"]:
            raise ConfigurationError("Responses(background=True) needs store=True; take store out of model_settings")
        sent["background"] = True
    return sent


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _logprobs(sent: dict[str, object]) -> list[str]:
    wanted = sent.pop("logprobs", False) or "top_logprobs" in sent
    return ["message.output_text.logprobs"] if wanted else []


def _settings(given: dict[str, Any]) -> dict[str, object]:
    """Return the grouped settings: `text` and `reasoning`."""
    text = dict(given.get("text") or {})
    if (form := given.get("response_format")) is not None:
        text["format"] = {"type": form["type"], **(form.get("json_schema") or {})}
    if (verbosity := given.get("verbosity")) is not None:
        text["verbosity"] = verbosity
    reasoning = dict(given.get("reasoning") or {})
    if (effort := given.get("reasoning_effort")) is not None:
        reasoning["effort"] = effort
    return {name: group for name, group in (("text", text), ("reasoning", reasoning)) if group}


def _tool(tool: dict[str, Any]) -> dict[str, object]:
    if tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        return tool
    function = tool["function"]
    # In chat completions a schema is strict only if it says so, here unless it says otherwise.
    return {"type": "function", "strict": False, "parameters": {"type": "object", "properties": {}}, **function}


def _choice(choice: object) -> object:
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "function" and isinstance(choice.get("function"), Mapping):
        return {"type": "function", "name": choice["function"].get("name")}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("allowed_tools"), Mapping):
        allowed = choice["allowed_tools"]
        return {**allowed, "type": "allowed_tools", "tools": [_choice(tool) for tool in allowed.get("tools") or ()]}
    return choice


def _history(messages: list[dict[str, object]]) -> dict[str, object]:
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return {"instructions": first["content"], "input": [*_items(messages[1:])]}
    return {"input": [*_items(messages)]}


def _items(messages: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    for message in messages:
        if message.get("role") == "assistant":
            yield from _reply(message)
        elif message.get("role") == "tool":
            output = _content(message.get("content"))
            yield {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}
        else:
            yield {"role": message.get("role"), "content": _content(message.get("content"))}


def _content(content: object) -> object:
    return [_part(part) for part in content] if isinstance(content, list | tuple) else content or ""


def _part(part: Any) -> object:
    """Return a part of a message; a part in the API's own form passes unchanged."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {"type": "input_text", "text": part.get("text", "")}
    if kind == "image_url":
        image = part.get("image_url")
        image = image if isinstance(image, Mapping) else {"url": image}
        return {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail") or "auto"}
    if kind == "file":
        return {"type": "input_file", **(part.get("file") or {})}
    return part


def _reply(message: dict[str, object]) -> Iterator[dict[str, object]]:
    origin = message.get("provider")
    items = origin.get("items") if isinstance(origin, Mapping) and origin.get("kind") == KIND else None
    yield from _foreign(message) if not isinstance(items, list) else _own(message, items)


def _foreign(message: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Yield the items of a reply of another provider."""
    calls = message.get("tool_calls") or []
    text = _text(message)
    if text or not calls:
        yield {"role": "assistant", "content": text}
    yield from map(_call, calls)


def _text(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return str(content or message.get("refusal") or "")


def _call(call: dict[str, Any]) -> dict[str, object]:
    function = call.get("function") or {}
    made = {"type": "function_call", "call_id": call.get("id")}
    return {**made, "name": function.get("name"), "arguments": function.get("arguments")}


def _own(message: dict[str, Any], items: Sequence[object]) -> Iterator[dict[str, object]]:
    """Yield the items of an own reply, with the texts and calls of its message."""
    calls, text = iter(message.get("tool_calls") or []), _text(message)
    kept = _usable(items)
    if kept is None:  # Items that followed missing reasoning are not sent under their ids, either.
        yield from _foreign(message)
        return
    if text and not any(item.get("type") == "message" for item in kept):
        yield {"role": "assistant", "content": text}
    for item in kept:
        if item.get("type") == "function_call":
            if (call := next(calls, None)) is not None:
                yield {**item, **_call(call)}
        elif item.get("type") == "message" and "content" not in item:
            yield {**item, "content": [{"type": "output_text", "text": text, "annotations": []}]}
        else:
            yield item
    yield from map(_call, calls)


def _usable(items: Sequence[object]) -> list[dict[str, object]] | None:
    """Return the items that the API accepts back; None if it cannot read their reasoning.

    Reasoning that led to nothing, in a reply that was cut, is left out.
    """
    kept = [item for item in items if isinstance(item, Mapping)]
    while kept and kept[-1].get("type") == "reasoning":
        kept.pop()
    thoughts = [item for item in kept if item.get("type") == "reasoning"]
    return [*map(dict, kept)] if all(item.get("encrypted_content") for item in thoughts) and kept else None
