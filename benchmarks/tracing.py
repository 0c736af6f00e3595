"""What tracing costs: the processor time of runs with tracing and of the same without, alternating in one process.

A turn is one model call and one tool call. The spans are kept in memory, or are sent by OTLP/HTTP, as
`BatchSpanProcessor` does, to a server in a process of its own. A run with tracing and one without take turns. The model
is scripted, and takes no time: with a client that sends requests a run costs more, and tracing the same.
Run: python benchmarks/tracing.py [DATABASE_URL] [--turns 10] [--pairs 100]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.otel import instrument
from durable_swarm.testing import ScriptedModel, call

WARM = 5
"""Pairs of runs that are not counted."""
USER = [{"role": "user", "content": "Go on until you are done."}]
SINK = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def stamp(number: int) -> str:
    """Stamp a number."""
    return f"stamped {number}"


AGENTS = {
    "@step tools": Agent(name="Stepped", functions=[step(stamp)]),
    "plain tools": Agent(name="Plain", functions=[stamp]),
}


def scripted(turns: int) -> ScriptedModel:
    """Return a model that makes a call in each turn and then says goodbye."""

    def reply(request: dict[str, Any]) -> Any:
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return [call("stamp", number=done)] if done < turns else "Goodbye."

    return ScriptedModel(reply, strict=False)


@contextmanager
def sink() -> Iterator[str]:
    """Return the URL of a server that takes traces."""
    process = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/traces"
    process.kill()
    process.communicate()


class Processor:
    """The processor time of this process; that of the thread that sends traces apart, because it sends them later."""

    def __init__(self, sending: str = "") -> None:
        self._sending = [thread for thread in threading.enumerate() if sending and sending in thread.name]

    def sending(self) -> float:
        """Return the seconds that the thread that sends traces has taken so far."""
        clocks = [time.pthread_getcpuclockid(thread.ident) for thread in self._sending if thread.ident]
        return sum(time.clock_gettime(clock) for clock in clocks)

    def taken(self, work: Callable[[], Any]) -> float:
        """Return the seconds that some work takes."""
        begun = time.process_time() - self.sending()
        work()
        return time.process_time() - self.sending() - begun


def compare(
    swarm: DurableSwarm, agent: Agent, provider: TracerProvider, clear: Callable[[], None], pairs: int
) -> tuple[float, float]:
    """Return the mean processor time of a run without tracing, and with it."""
    clock, off, on, sent = Processor("Otel"), 0.0, 0.0, 0.0
    for number in range(pairs + WARM):
        if number == WARM:
            off, on, sent = 0.0, 0.0, clock.sending()
        for traced in (False, True) if number % 2 else (True, False):
            stop = instrument(swarm, tracer_provider=provider) if traced else lambda: None
            taken = clock.taken(lambda: swarm.run(agent, USER))
            stop()
            off, on = (off, on + taken) if traced else (off + taken, on)
        clear()
    provider.force_flush()
    return off / pairs, (on + clock.sending() - sent) / pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    kept, sent = TracerProvider(), TracerProvider()
    kept.add_span_processor(SimpleSpanProcessor(memory := InMemorySpanExporter()))
    with tempfile.TemporaryDirectory() as folder, sink() as address:
        sent.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address)))
        url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
        with DurableSwarm(scripted(options.turns), database=url) as swarm:
            swarm.runs()
            for kind, agent in AGENTS.items():
                for way, provider in {"in memory": kept, "by OTLP": sent}.items():
                    off, on = compare(swarm, agent, provider, memory.clear, options.pairs)
                    print(
                        f"{kind}, {way}: a run takes {off * 1000:.1f} ms of CPU, with tracing {on / off:.3f} times that"
                    )
        sent.shutdown()


if __name__ == "__main__":
    main()
