"""Logs replies that the provider cut."""

from __future__ import annotations

import logging

from durable_swarm.loop import CUT

log = logging.getLogger("durable_swarm")

_REASONS = {
    "length": ("at its token limit", "raise the limit (max_tokens in model_settings), or ask for shorter replies"),
    "content_filter": ("because of its content", "change the prompt or the messages, or the provider's filter"),
}
"""For each reason what the provider did, and what helps."""


def warn_if_cut(agent: str, run_id: str, finish: str, *, has_calls: bool) -> None:
    """Log a warning if the finish reason says that the reply was cut."""
    if finish not in CUT:
        return
    what, remedy = _REASONS[finish]
    loss = "none of its tool calls is made, and the model gets the reason" if has_calls else "the text is not whole"
    log.warning(
        "run %r: the provider cut the reply of agent %r %s (finish_reason %r): %s. To avoid this, %s",
        run_id,
        agent,
        what,
        finish,
        loss,
        remedy,
    )
