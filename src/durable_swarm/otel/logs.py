"""Ids of runs and traces in log records."""

from __future__ import annotations

import logging

from durable_swarm.tools.context import calling


class RunIds(logging.Filter):
    """A filter for log handlers: records made inside a tool get `run_id`, `trace_id` and `span_id`, others ''."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the ids; every record passes."""
        from opentelemetry import trace  # Part of the extra, which importing this module does not need.

        here = calling()
        span = trace.get_current_span().get_span_context()
        record.run_id = "" if here is None else here.call.run_id
        record.trace_id = f"{span.trace_id:032x}" if span.is_valid else ""
        record.span_id = f"{span.span_id:016x}" if span.is_valid else ""
        return True
