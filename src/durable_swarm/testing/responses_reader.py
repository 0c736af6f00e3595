"""Converting a request of the Responses API to the equivalent chat request, so that one script answers both.

`as_chat` refuses what the API refuses: unknown parameters, items that do not belong together, reasoning that it did not
write.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from durable_swarm.testing.provider_rules import ProviderError

PARAMETERS = frozenset(
    {
        "background", "context_management", "conversation", "include", "input", "instructions", "max_output_tokens",
        "max_tool_calls", "metadata", "model", "moderation", "parallel_tool_calls", "previous_response_id", "prompt",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "truncation", "user",
    }
)  # fmt: skip
_SAME = ("model", "stream", "parallel_tool_calls", "temperature", "top_p", "metadata", "user", "service_tier", "store")
_PARTS = {"input_text": "text", "output_text": "text", "input_image": "image_url", "input_file": "file"}
_SEAL = "scripted."


def sealed(thought: str) -> str:
    """Return the encrypted form of reasoning, as it comes back with the history."""
    return _SEAL + base64.urlsafe_b64encode(json.dumps(thought).encode()).decode()


def as_chat(body: Mapping[str, object]) -> dict[str, object]:
    """Return the keyword arguments of `chat.completions.create` for the same question.

    Raises `ProviderError` with status 400 for a request that the Responses API refuses.
    """
    if unknown := sorted(body.keys() - PARAMETERS):
        _refuse(f"Unknown parameter: '{unknown[0]}'.")
    if body.get("background") and body.get("store") is False:
        _refuse("Background mode requires 'store' to be true.")
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = [*_instructions(body.get("instructions")), *_History(body.get("store") is not False).read(body)]
    if tools := [_tool(tool) for tool in _tools(body) if tool.get("type") == "function"]:
        chat["tools"] = tools
    else:
        chat.pop("parallel_tool_calls", None)
    if (choice := body.get("tool_choice")) is not None:
        chat["tool_choice"] = _choice(choice)
    text = _group(body, "text")
    if (form := text.get("format")) is not None:
        chat["response_format"] = _format(form)
    renamed = {
        "max_completion_tokens": body.get("max_output_tokens"),
        "reasoning_effort": _group(body, "reasoning").get("effort"),
        "verbosity": text.get("verbosity"),
    }
    return chat | {name: value for name, value in renamed.items() if value is not None}


def _refuse(message: str) -> NoReturn:
    raise ProviderError(message, 400)


def _group(body: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a group of settings, empty if it is not given."""
    given = body.get(name)
    return {} if given is None else _object(name, given)


def _object(where: str, given: object) -> Mapping[str, object]:
    if not isinstance(given, dict):
        _refuse(f"Invalid type for '{where}': expected an object.")
    return given


def _tools(body: Mapping[str, object]) -> list[Mapping[str, object]]:
    given = body.get("tools") or []
    if not isinstance(given, list):
        _refuse("Invalid type for 'tools': expected an array.")
    return [_object(f"tools[{index}]", tool) for index, tool in enumerate(given)]


def _instructions(text: object) -> list[dict[str, object]]:
    return [] if text is None else [{"role": "system", "content": text}]


def _tool(tool: Mapping[str, object]) -> dict[str, object]:
    if "function" in tool or "name" not in tool:
        _refuse("Missing required parameter: 'tools[0].name'.")
    kept = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": kept}


def _choice(given: object) -> object:
    if isinstance(given, str):
        return given
    choice = _object("tool_choice", given)
    if choice.get("type") != "function":
        return choice
    if "name" not in choice:
        _refuse("Missing required parameter: 'tool_choice.name'.")
    return {"type": "function", "function": {"name": choice["name"]}}


def _format(given: object) -> dict[str, object]:
    form = _object("text.format", given)
    if form.get("type") != "json_schema":
        return dict(form)
    if "name" not in form or "schema" not in form:
        _refuse("Missing required parameter: 'text.format.name'.")
    schema = {key: form[key] for key in ("name", "schema", "strict", "description") if form.get(key) is not None}
    return {"type": "json_schema", "json_schema": schema}


class _History:
    """Reads the items of `input`: the parts of one reply become one message again."""

    def __init__(self, stored: bool) -> None:
        self._stored = stored
        self._messages: list[dict[str, object]] = []
        self._reply: dict[str, Any] | None = None
        self._thought: str | None = None

    def read(self, body: Mapping[str, object]) -> list[dict[str, object]]:
        """Return the messages. Raises `ProviderError`."""
        given = body.get("input")
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        if not isinstance(given, list):
            _refuse("Missing required parameter: 'input'.")
        for index, item in enumerate(given):
            if not isinstance(item, dict):
                _refuse(f"Invalid type for 'input[{index}]'.")
            self._take(index, item)
        if self._thought is not None:
            self._unpaired()
        self._close()
        return self._messages

    def _take(self, index: int, item: dict[str, object]) -> None:
        match item.get("type", "message" if "role" in item else None):
            case "reasoning":
                self._think(index, item)
            case "message" if item.get("role") == "assistant":
                self._say(index, item)
            case "function_call":
                self._call(index, item)
            case "message" | "function_call_output" as kind:
                if self._thought is not None:
                    self._unpaired()
                self._close()
                self._messages.append(_message(index, item) if kind == "message" else _result(index, item))
            case kind:
                _refuse(f"Invalid value for 'input[{index}].type': {kind!r}.")

    def _unpaired(self) -> NoReturn:
        _refuse(f"Item '{self._thought}' of type 'reasoning' was provided without its required following item.")

    def _think(self, index: int, item: Mapping[str, object]) -> None:
        if not isinstance(item.get("summary"), list) or not item.get("id"):
            _refuse(f"Missing required parameter: 'input[{index}].summary'.")
        text = item.get("encrypted_content")
        if text is None and not self._stored:
            _refuse(f"Item with id '{item['id']}' not found. Items are not persisted when `store` is set to false.")
        if text is not None and not str(text).startswith(_SEAL):
            _refuse(f"The encrypted content of item {item['id']} could not be verified.")
        self._thought = str(item["id"])

    def _say(self, index: int, item: dict[str, object]) -> None:
        if self._reply is not None:
            self._close()
        self._thought = None
        self._reply = {"role": "assistant", **_content(index, item)}

    def _call(self, index: int, item: Mapping[str, object]) -> None:
        if not item.get("call_id"):
            _refuse(f"Missing required parameter: 'input[{index}].call_id'.")
        self._thought = None
        self._reply = self._reply or {"role": "assistant", "content": None}
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        made = {"id": item["call_id"], "type": "function", "function": function}
        self._reply.setdefault("tool_calls", []).append(made)

    def _close(self) -> None:
        if self._reply is not None:
            self._messages.append(self._reply)
        self._reply = None


def _message(index: int, item: dict[str, object]) -> dict[str, object]:
    return {"role": item.get("role"), **_content(index, item)}


def _result(index: int, item: Mapping[str, object]) -> dict[str, object]:
    output = item.get("output")
    if not isinstance(output, str | list):
        _refuse(f"Missing required parameter: 'input[{index}].output'.")
    text = output if isinstance(output, str) else _content(index, {"content": output})["content"]
    return {"role": "tool", "tool_call_id": item.get("call_id"), "content": text}


def _content(index: int, item: Mapping[str, object]) -> dict[str, object]:
    content = item.get("content")
    if isinstance(content, str):
        return {"content": content}
    if not isinstance(content, list):
        _refuse(f"Missing required parameter: 'input[{index}].content'.")
    own = "output_text" if item.get("role") == "assistant" else "input_text"
    parts = [_part(f"input[{index}].content[{number}]", part, own) for number, part in enumerate(content)]
    if refused := [part["refusal"] for part in parts if part["type"] == "refusal"]:
        return {"refusal": "".join(refused)}
    if own == "output_text" or all(part["type"] == "text" for part in parts):
        return {"content": "".join(part["text"] for part in parts)}
    return {"content": parts}


def _part(where: str, given: object, own: str) -> dict[str, Any]:
    part = _object(where, given)
    kind = part.get("type")
    if kind in ("input_text", "output_text") and kind != own:
        _refuse(f"Invalid value: '{kind}'. Supported values are: '{own}' and 'refusal' ({where}.type).")
    if kind == "refusal":
        return {"type": "refusal", "refusal": _text(f"{where}.refusal", part.get("refusal", ""))}
    if kind not in _PARTS:
        _refuse(f"Invalid value for '{where}.type': {kind!r}.")
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail", "auto")}}
    if kind == "input_file":
        return {"type": "file", "file": {key: value for key, value in part.items() if key != "type"}}
    return {"type": "text", "text": _text(f"{where}.text", part.get("text", ""))}


def _text(where: str, given: object) -> str:
    if not isinstance(given, str):
        _refuse(f"Invalid type for '{where}': expected a string.")
    return given
