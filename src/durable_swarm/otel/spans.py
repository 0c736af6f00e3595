"""The spans of a run, as plain data: a function of what is recorded, ids included.

invoke_workflow NAME        the run, from its start to its end
  invoke_agent AGENT        each stretch of turns of one agent
    chat MODEL              each model call
    execute_tool TOOL       each tool call
      durable_swarm.step    each step inside it
      durable_swarm.wait    each wait for a decision
      invoke_workflow NAME  each child run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from durable_swarm.observing import CallTrace, RunTrace, TurnTrace, WaitTrace
from durable_swarm.otel import names

Attributes = dict[str, Any]


@dataclass(frozen=True)
class SpanData:
    """One span. Times are seconds since 1970; ids are numbers, `parent` is None for the root of a trace."""

    name: str
    trace_id: int
    span_id: int
    parent: int | None
    started: float
    finished: float
    attributes: Attributes = field(default_factory=dict)
    error: str = ""
    kind: str = "internal"
    links: list[tuple[int, int]] = field(default_factory=list)


def trace_id_of(root: str) -> int:
    """Return the trace id of a family of runs, by the id of its top run."""
    return _hashed(16, "trace", root)


def span_id_of(*place: str) -> int:
    """Return the span id of a place, such as `("run", id)` and `("call", key)`."""
    return _hashed(8, *place)


def _hashed(size: int, *parts: str) -> int:
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:size], "big") or 1


def spans_of(trace: RunTrace, *, content: bool = False, since: float | None = None) -> list[SpanData]:
    """Return the spans of a run, parents first; those of its child runs are their own.

    The span of the run itself is among them once the run has ended. `since` leaves out what ended up to that time: it
    was sent with an earlier end of the run, which `resume` has undone.
    """
    spans = list(_Spans(trace, content).all())
    return [span for span in spans if since is None or _is_new(span, since)]


def _is_new(span: SpanData, since: float) -> bool:
    """Return True if a span was not sent with the earlier end: then a stretch that was in progress was sent, too."""
    stretch = span.attributes[names.OPERATION] == names.AGENT
    return (span.started if stretch else span.finished) > since


class _Spans:
    def __init__(self, trace: RunTrace, content: bool) -> None:
        self._trace = trace
        self._content = content
        self._id = trace_id_of(trace.root)
        self._first = span_id_of("run", trace.run_id)
        # A run that was resumed ends once more: its spans from then on are below a further one, below the first.
        self._root = span_id_of("run", trace.run_id, str(len(trace.resumed))) if trace.resumed else self._first
        self._common = {names.CONVERSATION: trace.session or trace.run_id, names.RUN_ID: trace.run_id}

    def all(self) -> Iterator[SpanData]:
        trace = self._trace
        if trace.end is not None:
            yield self._run()
        waits: dict[str, list[WaitTrace]] = {}
        for wait in trace.waits:
            waits.setdefault(wait.call, []).append(wait)
        for agent, group in groupby(trace.turns, lambda turn: turn.agent):
            turns = list(group)
            inner = [span for turn in turns for span in self._turn(turn, turns[0].turn, waits)]
            if inner:
                yield self._stretch(agent, turns, inner)
                yield from inner

    def _run(self) -> SpanData:
        trace, end = self._trace, self._trace.end
        assert end is not None
        more: Attributes = {names.LIVES: len(trace.resumed) + 1}
        if end.ended_by:
            more[names.ENDED_BY] = end.ended_by
        links = [(trace_id_of(trace.forked_from), span_id_of("run", trace.forked_from))] if trace.forked_from else []
        error = end.error or ("cancelled" if end.status == "cancelled" else "")
        attributes = self._about(names.RUN, {names.AGENT_NAME: trace.agent, **more}, error)
        parent = span_id_of("call", trace.call) if trace.call else None
        if trace.resumed:
            parent = self._first
        name = f"{names.RUN} {trace.agent}"
        return SpanData(
            name, self._id, self._root, parent, trace.started, end.at, attributes, error or end.message, links=links
        )

    def _stretch(self, agent: str, turns: list[TurnTrace], inner: list[SpanData]) -> SpanData:
        error = turns[-1].error
        attributes = self._about(names.AGENT, {names.AGENT_NAME: agent, names.TURN: turns[0].turn}, error)
        return SpanData(
            f"{names.AGENT} {agent}",
            self._id,
            self._stretch_id(turns[0].turn),
            self._root,
            min(span.started for span in inner),
            max(span.finished for span in inner),
            attributes,
            error,
        )

    def _stretch_id(self, turn: int) -> int:
        return span_id_of("agent", self._trace.run_id, str(turn))

    def _turn(self, turn: TurnTrace, first: int, waits: dict[str, list[WaitTrace]]) -> Iterator[SpanData]:
        parent = self._stretch_id(first)
        if turn.started is not None and turn.finished is not None:
            yield self._chat(turn, parent, turn.started, turn.finished)
        for call in turn.calls:
            if call.started is not None and call.finished is not None:
                yield self._call(call, turn, parent, call.started, call.finished)
                yield from self._inside(call, waits.get(call.key, []))

    def _chat(self, turn: TurnTrace, parent: int, started: float, finished: float) -> SpanData:
        about: Attributes = {names.AGENT_NAME: turn.agent, names.REQUEST_MODEL: turn.model, names.TURN: turn.turn}
        if turn.message is not None:
            about[names.FINISH_REASONS] = [turn.finish or ("tool_calls" if turn.calls else "stop")]
        if (usage := turn.usage) is not None:
            about |= {names.INPUT_TOKENS: usage.prompt_tokens, names.OUTPUT_TOKENS: usage.completion_tokens}
            more = {
                names.CACHED_TOKENS: usage.cached_tokens,
                names.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
                names.REASONING_TOKENS: usage.reasoning_tokens,
            }
            about |= {name: tokens for name, tokens in more.items() if tokens}
        if self._content and turn.message is not None:
            about[names.OUTPUT_MESSAGES] = json.dumps([turn.message], default=str)
            if turn.turn == 0:
                about[names.INPUT_MESSAGES] = json.dumps(list(self._trace.messages), default=str)
        span_id = span_id_of("chat", self._trace.run_id, str(turn.turn), *(["failed"] if turn.error else []))
        name = f"{names.CHAT} {turn.model}".strip()
        attributes = self._about(names.CHAT, about, turn.error)
        return SpanData(name, self._id, span_id, parent, started, finished, attributes, turn.error, "client")

    def _call(self, call: CallTrace, turn: TurnTrace, parent: int, started: float, finished: float) -> SpanData:
        about: Attributes = {
            names.TOOL_NAME: call.tool,
            names.TOOL_CALL: call.call_id,
            names.AGENT_NAME: turn.agent,
            names.TURN: turn.turn,
            names.EFFECT: call.effect,
        }
        if self._content:
            about |= {names.ARGUMENTS: call.arguments, names.RESULT: call.result or ""}
        span_id = span_id_of("call", call.key, *(["failed"] if call.error else []))
        attributes = self._about(names.TOOL, about, call.error)
        name = f"{names.TOOL} {call.tool}"
        return SpanData(name, self._id, span_id, parent, started, finished, attributes, call.error)

    def _inside(self, call: CallTrace, waits: list[WaitTrace]) -> Iterator[SpanData]:
        parent = span_id_of("call", call.key)
        for number, step in enumerate(call.steps):
            if step.started is not None and step.finished is not None:
                span_id = span_id_of("step", call.key, str(number))
                attributes = self._about(names.STEP, {}, step.error)
                yield SpanData(
                    step.name, self._id, span_id, parent, step.started, step.finished, attributes, step.error
                )
        for wait in waits:
            if wait.finished is not None:
                attributes = self._common | {
                    names.OPERATION: names.WAIT,
                    names.REQUEST_ID: wait.request_id,
                    names.REQUEST_KIND: wait.kind,
                }
                span_id = span_id_of("wait", wait.request_id)
                yield SpanData(names.WAIT, self._id, span_id, parent, wait.started, wait.finished, attributes)

    def _about(self, operation: str, more: Attributes, error: str) -> Attributes:
        told = {names.ERROR: error.partition(":")[0]} if error else {}
        return {names.OPERATION: operation, **self._common, **more, **told}
