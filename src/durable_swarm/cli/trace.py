"""`trace`: sends a recorded run to OpenTelemetry, also one that ended before tracing was on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from durable_swarm.cli.completion import run_argument
from durable_swarm.cli.options import Problem, Settings, as_json, common
from durable_swarm.display import one_line
from durable_swarm.observing import RunTrace
from durable_swarm.service import open_runs


@click.command(short_help="Send a recorded run to OpenTelemetry.")
@run_argument
@click.option(
    "--endpoint",
    metavar="URL",
    help="Where OTLP is taken over HTTP. Default: $OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318.",
)
@click.option("--content", is_flag=True, help="With messages, arguments and results.")
@as_json
@common
@click.pass_obj
def trace(settings: Settings, run_id: str, endpoint: str | None, content: bool, as_json: bool) -> int:
    """Send a run, and the runs below it, as one trace, with the same ids as those of the live run.

    An unfinished run is sent as far as it is recorded, without the span of the run itself. With --json the spans are
    printed, not sent.
    """
    with open_runs(settings.database) as opened:
        told = opened.traces(run_id)
    if as_json:
        from durable_swarm.otel.spans import spans_of

        spans = [span for one in told for span in spans_of(one, content=content)]
        click.echo(json.dumps([_shown(asdict(span)) for span in spans], indent=2))
        return 0
    return _sent(told, endpoint, content=content)


def _shown(span: dict[str, Any]) -> dict[str, object]:
    parent = span["parent"]
    ids = {"trace_id": f"{span['trace_id']:032x}", "span_id": f"{span['span_id']:016x}"}
    links = [f"{trace_id:032x}/{span_id:016x}" for trace_id, span_id in span["links"]]
    return {**span, **ids, "parent": None if parent is None else f"{parent:016x}", "links": links}


def _sent(told: Sequence[RunTrace], endpoint: str | None, *, content: bool) -> int:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from durable_swarm.otel.send import Sender
    except ImportError:
        raise Problem("Sending traces needs the extra: pip install 'durable-swarm[otel]'", 1) from None
    exporter = OTLPSpanExporter(None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces")
    provider, kept = TracerProvider(resource=Resource.create({"service.name": "durable-swarm"})), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    sender = Sender(provider, content=content)
    for one in told:
        sender.send(one, again=True)
    spans = kept.get_finished_spans()
    if exporter.export(spans) is not SpanExportResult.SUCCESS:
        raise Problem(f"Nothing takes OTLP at {endpoint or 'the default endpoint'}; give another with --endpoint.", 1)
    click.echo(one_line(f"Sent {len(spans)} spans of run {told[0].run_id}."))
    return 0
