"""`instrument`: sends the spans of runs that end in this process, and metrics of what is executed here."""

from __future__ import annotations

from collections.abc import Callable

from durable_swarm.errors import ConfigurationError
from durable_swarm.observing import observe


def instrument(
    swarm: object = None, *, tracer_provider: object = None, meter_provider: object = None, content: bool = False
) -> Callable[[], None]:
    """Send the traces of runs to OpenTelemetry, and metrics of what is executed; return the function that ends this.

    A run's spans are sent when it ends, by the process in which it ends, and tell its whole history: one trace however
    many processes it lived in, and nothing twice. Inside a tool the current span is the tool's, so spans of libraries
    that the tool uses belong to it. Metrics count what this process executes, never what it replays.

    `swarm` is the swarm to observe, by default all of this process. The providers are OpenTelemetry's, by default the
    global ones. With `content` spans have the messages, arguments and results. Raises `ConfigurationError`.
    """
    try:
        from durable_swarm.otel.observer import TelemetryObserver
    except ImportError as error:
        raise ConfigurationError(f"tracing needs the extra: pip install 'durable-swarm[otel]' ({error})") from error
    return observe(TelemetryObserver(swarm, tracer_provider, meter_provider, content=content))
