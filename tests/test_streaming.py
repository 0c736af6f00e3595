"""What waits for a reader of a streamed run."""

from __future__ import annotations

import threading
from typing import Any

from durable_swarm.streaming import Channel
from tests.contract.helpers import rebuilt


def fragment(index: int, **function: str) -> dict[str, Any]:
    """Give a delta with a piece of a tool call."""
    return {"tool_calls": [{"index": index, "function": function}]}


def test_unread_pieces_are_joined() -> None:
    """Beyond a number of items, pieces of one text or of one call's arguments are joined; nothing of them is lost."""
    channel = Channel(waiting=10)
    channel.begin("A", 0)
    channel.delta({"role": "assistant", "content": "0"})
    for number in range(1, 1000):
        channel.delta({"content": f" {number}"})
    for number in range(1000):
        channel.delta(fragment(number // 500, arguments=f"{number} "))
    channel.end()
    found = channel.take()
    assert len(found) == 14
    assert (found[0], found[-1]) == ({"delim": "start"}, {"delim": "end"})
    message = rebuilt(found[1:-1])
    assert message["content"] == " ".join(map(str, range(1000)))
    assert "".join(call["arguments"] for call in message["calls"]) == "".join(f"{number} " for number in range(1000))
    assert not channel.take()


def test_what_says_more_is_not_joined() -> None:
    """A delta with several fields, a new call, a reset and a field of the provider's own each stay what they are."""
    channel = Channel(waiting=0)
    channel.begin("A", 0)
    deltas: list[dict[str, Any]] = [
        {"content": "a"},
        {"content": "b", "reasoning": "c"},
        {"reasoning": "d"},
        {"reasoning": "e"},
        {"tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"name": "f"}}]},
        fragment(0, arguments="{"),
        fragment(0, arguments="}"),
        {"logprobs": [1]},
    ]
    for delta in deltas:
        channel.delta(delta)
    channel.reset()
    channel.delta({"content": "again"})
    said = [{key: value for key, value in item.items() if value is not None} for item in channel.take()]
    assert said[:5] == [
        {"delim": "start"},
        {"content": "a", "sender": "A"},
        {"content": "b", "reasoning": "c"},
        {"reasoning": "de"},
        {"tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": None}}]},
    ]
    arguments = {"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": "{}"}}
    assert said[5:] == [
        {"tool_calls": [arguments]},
        {"logprobs": [1]},
        {"delim": "reset"},
        {"content": "again", "sender": "A"},
    ]


def test_a_reader_is_woken_once() -> None:
    """A reader is woken when something has come after it had read all, not for every piece; a closed one never."""
    woken: list[int] = []
    channel = Channel(lambda: woken.append(1))
    for _ in range(100):
        channel.delta({"content": "x"})
    assert len(woken) == 1
    assert len(channel.take()) == 100
    channel.delta({"content": "x"})
    assert len(woken) == 2
    channel.close()
    channel.delta({"content": "x"})
    assert not channel.take()
    assert len(woken) == 2


def test_pieces_from_many_threads() -> None:
    """Nothing is lost or doubled when a thread writes while another reads."""
    channel, found = Channel(waiting=5), []
    writer = threading.Thread(target=lambda: [channel.delta({"content": f"{number} "}) for number in range(20_000)])
    writer.start()
    while writer.is_alive():
        found += channel.take()
    writer.join()
    found += channel.take()
    assert "".join(item["content"] for item in found) == "".join(f"{number} " for number in range(20_000))
