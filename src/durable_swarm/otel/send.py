"""Sends spans that are made from records, with the ids that they have."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from durable_swarm.observing import RunTrace
from durable_swarm.otel import names
from durable_swarm.otel.spans import SpanData, spans_of

KINDS = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Sender:
    """Sends spans with the ids that they have, by a tracer of its own."""

    def __init__(self, tracer_provider: Any = None, *, content: bool = False) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, tracer_provider=tracer_provider)
        self._content = content
        if hasattr(self._tracer, "id_generator"):  # The SDK's tracer; ours alone gets given ids.
            self._tracer.id_generator = _GivenIds()

    def send(self, told: RunTrace, *, again: bool = False) -> list[SpanData]:
        """Send the spans of a run and return them; with `again` also those sent with earlier ends of it."""
        since = told.resumed[-1] if told.resumed and not again else None
        spans = spans_of(told, content=self._content, since=since)
        for span in spans:
            self._send(span)
        return spans

    def _send(self, told: SpanData) -> None:
        around = context.Context()
        if told.parent is not None:
            parent = SpanContext(told.trace_id, told.parent, is_remote=True, trace_flags=SAMPLED)
            around = set_span_in_context(NonRecordingSpan(parent), around)
        links = [Link(SpanContext(*link, is_remote=True)) for link in told.links]
        token = _ids.set((told.trace_id, told.span_id))
        try:
            span = self._tracer.start_span(
                told.name,
                around,
                KINDS[told.kind],
                told.attributes,
                links,
                round(told.started * 1e9),
            )
        finally:
            _ids.reset(token)
        if told.error:
            span.set_status(Status(StatusCode.ERROR, told.error if self._content else None))
        span.end(round(told.finished * 1e9))


_ids: ContextVar[tuple[int, int]] = ContextVar("durable_swarm_span_ids")


class _GivenIds:
    """An id generator that gives the ids of the span that is being sent."""

    def generate_trace_id(self) -> int:
        return _ids.get()[0]

    def generate_span_id(self) -> int:
        return _ids.get()[1]

    def is_trace_id_random(self) -> bool:
        return True  # A hash: its bits are as good as random ones for samplers.
