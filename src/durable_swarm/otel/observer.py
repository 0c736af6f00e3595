"""The observer that sends traces and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from opentelemetry import context, metrics
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from durable_swarm.observing import Executed, RunTrace
from durable_swarm.otel import names
from durable_swarm.otel.send import SAMPLED, Sender
from durable_swarm.otel.spans import span_id_of, trace_id_of

OPERATIONS = {"model": (names.CHAT, names.REQUEST_MODEL), "tool": (names.TOOL, names.TOOL_NAME)}
"""The operation of a kind of call, and the attribute with its name."""


class TelemetryObserver:
    """Observes a swarm, or with None all swarms of the process."""

    def __init__(self, swarm: object, tracer_provider: object, meter_provider: Any, *, content: bool) -> None:
        self._swarm = swarm
        self._sender = Sender(tracer_provider, content=content)
        meter = metrics.get_meter(names.SCOPE, meter_provider=meter_provider)
        self._duration = meter.create_histogram(names.DURATION, "s", "Time of a model call or a tool call.")
        self._tokens = meter.create_histogram(names.TOKENS, "{token}", "Tokens of a model call.")

    def wants(self, swarm: object) -> bool:
        return self._swarm is None or swarm is self._swarm

    @contextlib.contextmanager
    def inside(self, root: str, key: str) -> Iterator[None]:
        span = SpanContext(trace_id_of(root), span_id_of("call", key), is_remote=False, trace_flags=SAMPLED)
        token = context.attach(set_span_in_context(NonRecordingSpan(span)))
        try:
            yield
        finally:
            context.detach(token)

    def executed(self, what: Executed) -> None:
        operation, subject = OPERATIONS[what.kind]
        about = {names.OPERATION: operation, subject: what.name, names.AGENT_NAME: what.agent}
        self._duration.record(what.seconds, about | ({names.ERROR: what.error} if what.error else {}))
        if what.usage is not None:
            self._tokens.record(what.usage.prompt_tokens, {**about, names.TOKEN_TYPE: "input"})
            self._tokens.record(what.usage.completion_tokens, {**about, names.TOKEN_TYPE: "output"})

    def ended(self, told: RunTrace) -> None:
        self._sender.send(told)
