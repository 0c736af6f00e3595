"""Traces and metrics of runs for OpenTelemetry. Needs the extra `otel` (`pip install 'durable-swarm[otel]'`)."""

from durable_swarm.otel.instrument import instrument
from durable_swarm.otel.logs import RunIds

__all__ = ["RunIds", "instrument"]
