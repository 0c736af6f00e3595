"""Replies of real models that scripts never give, and the text that every screen must show for each.

A program of yours can be tested with them, too: `ScriptedModel(row.replies)` for each row of `REAL_REPLIES`. The
scripts call a tool `refund(order: str, amount: int = 100)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from durable_swarm.testing.faults import cut_off


@dataclass(frozen=True)
class RealReply:
    """One kind of reply: a script that contains it, and a text that a screen must show for it.

    `max_turns` is that of the run. `ended_by` is the value in the run's response.
    """

    kind: str
    replies: list[Any]
    tells: str
    ended_by: str = "answer"
    max_turns: float = float("inf")


_REFUND = ("refund", '{"order": "A", "amount": 100}')
_AGAIN = ("refund", '{ "amount": 100, "order": "A" }')

REAL_REPLIES: tuple[RealReply, ...] = (
    RealReply("text cut at the token limit", [cut_off("The refund is")], "cut by the provider's token limit", "length"),
    RealReply("nothing before the token limit", [cut_off("")], "cut by the provider's token limit", "length"),
    RealReply(
        "text cut by the content filter",
        [cut_off("The refund", "content_filter")],
        "stopped by the provider's content filter",
        "content_filter",
    ),
    RealReply("call cut at the token limit", [cut_off([("refund", '{"order": "A')]), "Sorry."], "your reply was cut"),
    RealReply("call cut behind its name", [cut_off([("refund", "")]), "Sorry."], "your reply was cut"),
    RealReply("unknown tool", [[("refnd", "{}")], "Sorry."], "Tool refnd not found. Your tools are: refund."),
    RealReply("broken arguments", [[("refund", '{"order": "A')], "Sorry."], "not valid JSON"),
    RealReply("unfit arguments", [[("refund", '{"order": "A", "amount": "many"}')], "Sorry."], "Error:"),
    RealReply("call that had succeeded", [[_REFUND], [_AGAIN], "Done."], "same call as"),
    RealReply("twins in one reply", [[_REFUND, _AGAIN], "Done."], "same call as"),
    RealReply("call written as text", ['{"name": "refund", "arguments": {"order": "A"}}'], "written as text"),
    RealReply("name written as text", ["refund"], "written as text"),
    RealReply("empty reply", [""], "empty reply"),
    RealReply("no end but max_turns", [[_REFUND], [("refund", {"order": "B"})]], "max turns", "max_turns", 4),
    RealReply("text that turns the direction", ["Pay \u202e001 now"], "\\u202e001"),
    RealReply("text that controls a terminal", ["Pay \x9b2J now"], "\\x9b2J"),
)
"""One row for each kind of reply that only real models give."""
