"""The content of a user's message from the parts that a door gets: text and pictures. No part is left out silently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from durable_swarm.server.backend import Refused

Part = dict[str, Any]


def text_part(text: str) -> Part:
    """Return a text as a part of chat completions."""
    return {"type": "text", "text": text}


def file_part(media_type: str, url: str) -> Part:
    """Return a file as a part of chat completions. Raises `Refused` for one that is not a picture."""
    if not media_type.startswith("image/"):
        raise Refused(422, "InvalidBody", f"agents take parts that are text or pictures, not {media_type!r:.80}")
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(media_type: str, encoded: str) -> str:
    """Return the URL of data that are encoded as base64."""
    return f"data:{media_type};base64,{encoded}"


def content_of(parts: Iterable[Part], between: str = "") -> str | list[Part]:
    """Return the content of a message with these parts: one text, unless there is something else among them."""
    found = list(parts)
    if all(part["type"] == "text" for part in found):
        return between.join(part["text"] for part in found)
    return found
