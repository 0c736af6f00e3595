"""Responses: a run as one response, whole or as a stream whose numbers follow from the run's events."""

from __future__ import annotations

from collections.abc import Iterator

from durable_swarm.events import Event
from durable_swarm.server.outcome import Outcome
from durable_swarm.types import Usage

STATUS = {"done": "completed", "failed": "failed", "cancelled": "cancelled", "queued": "queued"}
CUT = {"length": "max_output_tokens", "max_turns": "max_output_tokens", "limit": "max_output_tokens"}


def response_of(response_id: str, outcome: Outcome) -> dict[str, object]:
    """Return a run as a response; one that waits for a person is complete, and says what it waits for."""
    status = "completed" if outcome.waits_for else STATUS.get(outcome.status, "in_progress")
    reason = CUT.get(outcome.ended_by or "") or ("content_filter" if outcome.ended_by == "content_filter" else None)
    failed = {"code": "server_error", "message": outcome.error or "the run failed"} if status == "failed" else None
    output = [_item(response_id, 0, outcome.text)] if status == "completed" and outcome.text else []
    return {
        "id": response_id,
        "object": "response",
        "created_at": outcome.created,
        "status": "incomplete" if reason and status == "completed" else status,
        "error": failed,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": None,
        "metadata": {"run_id": outcome.run_id},
        "model": outcome.agent,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": _usage(outcome.usage) if status == "completed" else None,
    }


def _usage(usage: Usage | None) -> dict[str, object]:
    known = usage or Usage()
    return {
        "input_tokens": known.prompt_tokens,
        "input_tokens_details": {"cached_tokens": known.cached_tokens},
        "output_tokens": known.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": known.reasoning_tokens},
        "total_tokens": known.total_tokens,
    }


def _item(response_id: str, number: int, text: str, status: str = "completed") -> dict[str, object]:
    return {
        "id": f"msg_{response_id.removeprefix('resp_')}_{number}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_part(text)] if text else [],
    }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseStream:
    """Makes the events of a response of a run's events; each text of a turn is an item, a void one is incomplete."""

    def __init__(self, response_id: str, start: Outcome) -> None:
        self.over = False
        self._id = response_id
        self._begin = {**response_of(response_id, start), "status": "in_progress", "output": [], "usage": None}
        self._begin |= {"error": None, "incomplete_details": None}
        self._number = 0
        self._items: list[dict[str, object]] = []
        self._text: str | None = None
        """The text of the item that is open."""

    def take(self, event: Event) -> Iterator[dict[str, object]]:
        """Yield what follows from an event of the run."""
        match event.type:
            case "run.started":
                yield self._told("response.created", response=self._begin)
                yield self._told("response.in_progress", response=self._begin)
            case "text.delta":
                yield from self._delta(event.data["text"])
            case "text.reset":
                yield from self._close("incomplete")
            case "turn.started":
                yield from self._close("completed")
            case "run.finished" | "run.failed" | "run.cancelled":
                self.over = True

    def end(self, outcome: Outcome) -> Iterator[dict[str, object]]:
        """Yield the end of the stream."""
        yield from self._close("completed")
        if outcome.waits_for:
            yield from self._delta(outcome.text)
            yield from self._close("completed")
        response = response_of(self._id, outcome)
        if response["status"] in ("completed", "incomplete"):
            response["output"] = [item for item in self._items if item["status"] == "completed"]
        kind = response["status"] if response["status"] in ("completed", "incomplete", "failed") else "failed"
        yield self._told(f"response.{kind}", response=response)

    def _delta(self, text: str) -> Iterator[dict[str, object]]:
        place = {"output_index": len(self._items)}
        if self._text is None:
            self._text = ""
            item = _item(self._id, len(self._items), "", "in_progress")
            yield self._told("response.output_item.added", item=item, **place)
            yield self._told("response.content_part.added", **self._place(), part=_part(""))
        self._text += text
        yield self._told("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _close(self, status: str) -> Iterator[dict[str, object]]:
        if self._text is None:
            return
        text, place = self._text, self._place()
        item = _item(self._id, len(self._items), text, status)
        yield self._told("response.output_text.done", **place, text=text, logprobs=[])
        yield self._told("response.content_part.done", **place, part=_part(text))
        yield self._told("response.output_item.done", item=item, output_index=len(self._items))
        self._items.append(item)
        self._text = None

    def _place(self) -> dict[str, object]:
        number = len(self._items)
        return {"item_id": _item(self._id, number, "")["id"], "output_index": number, "content_index": 0}

    def _told(self, kind: str, **fields: object) -> dict[str, object]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}
