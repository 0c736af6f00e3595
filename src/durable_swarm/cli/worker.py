"""`worker`: a process that executes queued runs, and takes over those of dead processes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from durable_swarm import agents
from durable_swarm.cli.loading import load
from durable_swarm.cli.options import Problem, Settings, common
from durable_swarm.display import one_line
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.database import urls
from durable_swarm.engine.execution.swarms import QueueLimits
from durable_swarm.engine.processes import here
from durable_swarm.engine.processes.maintenance import CLOSING

log = logging.getLogger("durable_swarm")

LOOPBACK = "127.0.0.1"


@click.command(short_help="Execute queued runs, and those of dead processes.")
@click.argument("target", metavar="MODULE:SWARM")
@click.option(
    "--concurrency", metavar="N", type=click.IntRange(1, 10_000), default=10, show_default=True,
    help="How many runs at once.",
)  # fmt: skip
@click.option(
    "--grace", metavar="SECONDS", type=click.FloatRange(0, 86_400), default=30.0, show_default=True,
    help="How long SIGTERM and Ctrl+C wait for the steps in progress.",
)  # fmt: skip
@click.option(
    "--queue-concurrency", metavar="N", type=click.IntRange(1, 1_000_000),
    help="How many runs of the queue all workers execute at once; give all the same.",
)  # fmt: skip
@click.option(
    "--rate",
    metavar="RUNS/SECONDS",
    help="How many runs of the queue all workers begin, such as 100/60; give all the same.",
)
@click.option(
    "--healthz", metavar="[HOST:]PORT", callback=lambda _, __, text: _address(text),
    help="Answer GET /healthz on this port, for this computer alone; 0.0.0.0:PORT for all.",
)  # fmt: skip
@common
@click.pass_obj
def worker(
    settings: Settings,
    target: str,
    concurrency: int,
    queue_concurrency: int | None,
    rate: str | None,
    grace: float,
    healthz: tuple[str, int] | None,
) -> int:
    """Execute the runs that wait on the queue, and continue those of dead processes.

    MODULE is imported, and so executed, as from the current directory: put what starts runs behind `if __name__ ==
    "__main__":`. It defines the agents; SWARM is its `DurableSwarm`. Start as many workers as you like, on as many
    machines, with one PostgreSQL database. SIGTERM and Ctrl+C finish the steps in progress; a second one does not wait.
    """
    limits = QueueLimits(concurrency, queue_concurrency, _rate(rate))
    swarm = load(settings, target)
    if not agents.names():
        raise Problem(f"Error: {target} defines no agent to execute; import its agents in its module.", 2)
    _log_to_stderr()
    stop = threading.Event()
    with swarm, _stopping(stop), _health(healthz):
        swarm.serve(limits.concurrency, queue_concurrency=limits.queue_concurrency, rate=limits.rate)
        process = here.current()
        click.echo(
            one_line(
                f"Worker {process.identity.name} serves {target} on {urls.shown(process.url)}, {_told(limits)}; "
                f"its agents: {', '.join(sorted(agents.names()))}."
            )
        )
        while not stop.wait(0.5):
            pass
        _drain(swarm, grace)
    log.info("stopped")
    return 0


def _drain(swarm: DurableSwarm, grace: float) -> None:
    """Finish the steps in progress, if that does not take too long; else end the process."""
    log.info("stopping: the steps in progress are finished, the rest is left to other workers")
    if not _within(grace + CLOSING, lambda: swarm.drain(grace)):
        left = ", ".join(sorted(here.current().local.executions)) or "what is in progress"
        log.warning("%s took longer than %g s, and is left to other workers, who make the step again", left, grace)
        _end(swarm)


def _told(limits: QueueLimits) -> str:
    text = f"{limits.concurrency} runs at once"
    if limits.queue_concurrency is not None:
        text += f", {limits.queue_concurrency} in all workers"
    if limits.rate is not None:
        text += f", of which all begin {limits.rate[0]} in {limits.rate[1]:g} s"
    return text


def _log_to_stderr() -> None:
    """Show the log with times, unless the program has set up its own."""
    if log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _within(seconds: float, function: Callable[[], object]) -> bool:
    """Call a function, and return True if its result is true within that time, because a lost database may hang."""
    given: list[object] = []
    thread = threading.Thread(target=lambda: given.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(given and given[0])


def _end(swarm: DurableSwarm) -> None:
    """Close, then end the process, because a tool in a thread cannot be stopped and must not outlast the close."""
    _within(CLOSING, swarm.close)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _address(text: str | None) -> tuple[str, int] | None:
    """Return the address of `HOST:PORT` or `PORT`; without a host it is reachable from this computer only."""
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536 or (colon and not host):
        raise click.BadParameter(f"give PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, not {text!r}")
    return host or LOOPBACK, int(port)


def _rate(text: str | None) -> tuple[int, float] | None:
    if text is None:
        return None
    runs, _, seconds = text.partition("/")
    try:
        return int(runs), float(seconds)
    except ValueError:
        raise click.UsageError(f"--rate must be RUNS/SECONDS, such as 100/60, not {text!r}.") from None


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM and Ctrl+C, and end the process on a second one."""

    def on_signal(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _health(address: tuple[str, int] | None) -> Iterator[None]:
    """Answer `GET /healthz` while the worker runs: 200 while it may begin runs, 503 when it stops."""
    if address is None:
        yield
        return
    host, port = address
    try:
        server = (_Server6 if ":" in host else ThreadingHTTPServer)(address, _Health)
    except OSError as error:
        where = f"Port {port}" if host == LOOPBACK else f"{host}, port {port},"
        raise Problem(
            f"{where} cannot be used for /healthz: {error.strerror or error}. Name another with --healthz.", 2
        ) from error
    threading.Thread(target=server.serve_forever, name="durable-swarm-health", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/healthz":
            self.send_error(404)
            return
        process = here.current()
        works = not process.is_closed and process.outage.reason is None
        facts = {"worker": process.identity.name, "works": works, "runs": len(process.local.executions)}
        body = json.dumps({**facts, "failing": process.maintenance.errors()}).encode()
        self.send_response(200 if works else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing, because probes come every few seconds."""
