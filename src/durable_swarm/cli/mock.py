"""`mock`: a server with an offline model, so that a program runs without a key; `run --mock` uses the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from durable_swarm.cli.options import debuggable

if TYPE_CHECKING:
    from durable_swarm.testing import ScriptedServer

F = TypeVar("F", bound=Callable[..., object])

BASE_URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


def _failing(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, float]:
    """Read `STATUS:SHARE`."""
    if text is None:
        return 429, 0.0
    status, _, share = text.partition(":")
    try:
        found = int(status), float(share)
    except ValueError:
        found = 0, 0.0
    if not 400 <= found[0] <= 599 or not 0 <= found[1] <= 1:
        raise click.BadParameter(f"{text!r} is not STATUS:SHARE, such as 429:0.1 for one request in ten")
    return found


def mocking(function: F) -> F:
    """Add the options of the offline model to a command."""
    seed = click.option("--seed", type=int, default=0, show_default=True, help="Varies what the mock model invents.")
    latency = click.option(
        "--latency",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Time before each answer of the mock model.",
    )
    fail = click.option(
        "--fail", metavar="STATUS:SHARE", callback=_failing, help="Refuse a share of the requests: 429:0.1."
    )
    return seed(latency(fail(function)))


def mock_server(*, seed: int, latency: float, fail: tuple[int, float], port: int = 0) -> ScriptedServer:
    """Return the server, which is not started yet."""
    from durable_swarm.testing import mock_model, serve_scripted

    status, share = fail
    return serve_scripted(mock_model(seed=seed, fail=share, status=status), latency=latency, port=port)


def use(server: ScriptedServer) -> None:
    """Make openai's default client in this process ask the server."""
    os.environ[BASE_URL], os.environ[KEY] = server.base_url, server.api_key


@click.command(short_help="Serve an offline model, so that programs run without a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8899, show_default=True, help="0 takes a free one.")
@mocking
@debuggable
def mock(port: int, seed: int, latency: float, fail: tuple[int, float]) -> int:
    """Serve an offline model with OpenAI's API on this machine, until Ctrl+C.

    It calls the tools that a user's message is about, with arguments that fit each tool's schema, hands off, and ends.
    The tools themselves are executed, with these invented arguments. `durable-swarm run --mock SCRIPT` runs one program
    with it.
    """
    with mock_server(seed=seed, latency=latency, fail=fail, port=port) as server:
        click.echo(f"The mock model listens on {server.base_url}; Ctrl+C ends it. For a program in another terminal:")
        click.echo(f"  export {BASE_URL}={server.base_url} {KEY}={server.api_key}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0
