"""What changes on a page by itself: parts, sent again when they differ, and the reply in progress."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping

from starlette.requests import Request

from durable_swarm.display import harmless
from durable_swarm.events import Event

STILL = 15.0
"""Seconds for which an unchanged mark means that a page is as it was."""


def mark_of(*texts: str) -> str:
    """Return a short mark that differs when the texts differ."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:16]


def seen_now(mark: object) -> str:
    """Return what a page has seen, to be sent back when it asks for changes: the mark of the database, and the time."""
    return f"{mark_of(str(mark))}.{time.time():.0f}"


def is_still(request: Request, mark: object) -> bool:
    """Return True if nothing has changed since the page was made; for a while, as a dying process leaves no mark."""
    seen, _, at = request.query_params.get("seen", "").partition(".")
    return seen == mark_of(str(mark)) and at.isdigit() and time.time() - int(at) < STILL


def replaced(parts: Mapping[str, str]) -> str:
    """Return parts of a page as one message that changes each of them in place; `pulse` is made anew."""
    swaps = dict.fromkeys(parts, "outerMorph") | {"pulse": "outerHTML"}
    return "\n".join(
        f'<hx-partial hx-target="#{name}" hx-swap="{swaps[name]}">{html}</hx-partial>' for name, html in parts.items()
    )


class Speech:
    """The text of the reply in progress, read from events. It is not recorded yet, so no history has it."""

    def __init__(self) -> None:
        self.turn = -1
        self.agent = ""
        self.text = ""
        self.seq = 0

    def hear(self, events: Iterable[Event]) -> str | None:
        """Take events; return the text that they only add, or None if they tell of anything else."""
        added, only = "", True
        for event in events:
            self.seq = event.seq
            if event.type == "text.delta":
                piece = event.data["text"]
                added += harmless(piece, (self.text or " ")[-1])
                self.text += piece
                continue
            only = False
            if event.type in ("turn.started", "run.started", "text.reset"):
                self.turn = event.data.get("turn", self.turn)
                self.agent = event.data.get("agent", self.agent)
                self.text = ""
        return added if only else None
