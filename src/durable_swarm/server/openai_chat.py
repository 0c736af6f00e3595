"""Chat completions: a run as one completion, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from durable_swarm.events import Event
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Refused
from durable_swarm.server.outcome import Outcome
from durable_swarm.types import Usage

FINISH = {"length": "length", "max_turns": "length", "limit": "length", "content_filter": "content_filter"}
"""The finish reasons of runs that ended without an answer."""


def completion(outcome: Outcome) -> dict[str, object]:
    """Return the whole completion. Raises `Refused` for a run that failed or was cancelled."""
    if outcome.status in ENDED and outcome.status != "done":
        # Not a 5xx: clients would repeat the request, and start another run.
        raise Refused(422, "RunFailed", f"run {outcome.run_id!r} is {outcome.status}: {outcome.error}".rstrip(": "))
    message = {"role": "assistant", "content": outcome.text, "refusal": None}
    finish = FINISH.get(outcome.ended_by or "", "stop")
    return {
        "id": f"chatcmpl-{outcome.run_id}",
        "object": "chat.completion",
        "created": outcome.created,
        "model": outcome.agent,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": usage_of(outcome.usage),
    }


def usage_of(usage: Usage | None) -> dict[str, object]:
    """Return the tokens of a run as a completion tells them."""
    known = usage or Usage()
    return {
        "prompt_tokens": known.prompt_tokens,
        "completion_tokens": known.completion_tokens,
        "total_tokens": known.total_tokens,
        "prompt_tokens_details": {"cached_tokens": known.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": known.reasoning_tokens},
    }


class ChatStream:
    """Makes chunks of a run's events. No chunk can be taken back: void text is followed by what comes in its place."""

    def __init__(self, run_id: str, model: str, *, usage: bool) -> None:
        self.over = False
        self._about = {"id": f"chatcmpl-{run_id}", "object": "chat.completion.chunk", "created": int(time.time())}
        self._about["model"] = model
        self._usage = usage
        self._begun = False
        self._sent = ""
        """The text of this turn that was sent."""
        self._text = ""
        """The text of this turn that counts."""

    def take(self, event: Event) -> Iterator[dict[str, object]]:
        """Yield the chunks of an event."""
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        match event.type:
            case "turn.started":
                yield from self._close()
            case "text.delta":
                self._text += event.data["text"]
                if self._text.startswith(self._sent) and len(self._text) > len(self._sent):
                    yield self._chunk({"content": self._text[len(self._sent) :]})
                    self._sent = self._text
            case "text.reset":
                self._text = ""
            case "run.finished":
                yield from self._close(last=True)
                self.over = True
                yield self._chunk({}, FINISH.get(event.data.get("ended_by") or "", "stop"))
            case "run.failed" | "run.cancelled":
                self.over = True
                text = event.data.get("error_message") or "the run was cancelled"
                yield {"error": {"message": text, "type": event.data.get("error_type", "RunCancelled")}}

    def _close(self, *, last: bool = False) -> Iterator[dict[str, object]]:
        """Send what is missing of the turn's text, and a blank line if another turn may follow it."""
        if self._text != self._sent:
            rest = self._text.removeprefix(self._sent)
            yield self._chunk({"content": f"\n\n{rest}" if self._sent and rest == self._text else rest})
        if self._sent and not last:
            yield self._chunk({"content": "\n\n"})
        self._sent = self._text = ""

    def end(self, outcome: Outcome) -> Iterator[dict[str, object]]:
        """Yield the chunks that end the stream of a run that waits."""
        self.over = True
        if outcome.text:
            yield self._chunk({"content": outcome.text})
        yield self._chunk({}, "stop")

    def usage(self, usage: Usage | None) -> Iterator[dict[str, object]]:
        """Yield the chunk with the tokens, if it was asked for."""
        if self._usage:
            yield {**self._about, "choices": [], "usage": usage_of(usage)}

    def _chunk(self, delta: Mapping[str, object], finish: str | None = None) -> dict[str, object]:
        return {**self._about, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}
