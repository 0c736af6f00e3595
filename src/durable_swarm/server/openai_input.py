"""The input of a response as chat messages."""

from __future__ import annotations

from collections.abc import Mapping

from durable_swarm.server.backend import Refused
from durable_swarm.server.content import Part, content_of, file_part, text_part

TEXTS = ("input_text", "output_text", "text")


def messages_of(asked: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the messages of a request: its instructions and its input. Raises `Refused`."""
    given = asked.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise Refused(422, "InvalidBody", "input must be a text or a list of messages")
    system = [{"role": "system", "content": asked["instructions"]}] if asked.get("instructions") else []
    return [*system, *map(_message, given)]


def _message(item: object) -> dict[str, object]:
    if not isinstance(item, dict) or item.get("type", "message") != "message" or "role" not in item:
        kind = item.get("type") if isinstance(item, dict) else type(item).__name__
        raise Refused(422, "InvalidBody", f"input takes messages, not {kind!r}: agents call their tools themselves")
    role = "system" if item["role"] == "developer" else item["role"]
    content = item.get("content")
    return {"role": role, "content": content if isinstance(content, str) else _parts(content)}


def _parts(content: object) -> object:
    if not isinstance(content, list):
        raise Refused(422, "InvalidBody", "the content of a message must be a text or a list of parts")
    return content_of(map(_part, content))


def _part(part: object) -> Part:
    part = part if isinstance(part, dict) else {}
    kind = part.get("type")
    if kind in TEXTS:
        return text_part(str(part.get("text", "")))
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str):
            raise Refused(422, "InvalidBody", "files that a provider keeps are not passed on; send image_url, a text")
        return file_part("image/*", url)
    raise Refused(422, "InvalidBody", f"a part of the input is of type {kind!r}, which is not supported")
