"""The pieces of a text, however a provider divides it, are told once and join to what the message holds."""

from __future__ import annotations

import time
from typing import Any

import pytest

from durable_swarm import Agent
from tests.crash.following import as_line
from tests.engine.conftest import Make
from tests.engine.helpers import unique, user


class Divided:
    """A client that streams these contents, so slowly that rows are written between them."""

    def __init__(self, pieces: list[Any]) -> None:
        self.chat = self.completions = self
        self._pieces = pieces

    def create(self, **_: Any) -> Any:
        for piece in self._pieces:
            time.sleep(0.03)
            yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("begin", [0, 3])
def test_a_text_divided_within_a_character_is_told_whole(begin: int, make: Make) -> None:
    """Where a provider's chunks end within a character, the pieces still join to the message's text."""
    pieces = [*("abcdefgh"[:begin]), *["\ud83d", "\ude00", "x", "yz"] * 3, *"the end of it"]
    run = make(Divided(pieces)).start(Agent(name=unique()), user())
    live = [as_line(event) for event in run.events()]
    text = "".join(event["data"]["text"] for event in live if event["type"] == "text.delta")
    assert text.encode("utf-16", "surrogatepass").decode("utf-16") == run.result().messages[0]["content"]
    assert [as_line(event) for event in run.events()] == live


def test_a_text_among_other_parts_is_told_as_text(make: Make) -> None:
    """Where a content has other parts beside its text, the text is told, as text."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    run = make(Divided(["one ", "two ", [thought], "three ", *"four five"])).start(Agent(name=unique()), user())
    live = [as_line(event) for event in run.events()]
    assert (
        "".join(event["data"]["text"] for event in live if event["type"] == "text.delta") == "one two three four five"
    )
    assert [as_line(event) for event in run.events()] == live
