"""`serve`: a swarm over HTTP, with its doors and the web console."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from durable_swarm import agents
from durable_swarm.cli.listening import check_proxy, listen, listening
from durable_swarm.cli.loading import load
from durable_swarm.cli.options import Problem, Settings, common
from durable_swarm.engine.api.durable import DurableSwarm

if TYPE_CHECKING:
    from durable_swarm.server.doors import Server
    from durable_swarm.server.guard import Access

PORT = 8000


@click.command(short_help="Serve the agents of a program over HTTP, and the console.")
@click.argument("target", metavar="MODULE:SWARM")
@listening(PORT, "clients")
@click.option("--doors", metavar="NAMES", help="The interfaces to open, separated by commas. Default: all.")
@click.option("--no-console", is_flag=True, help="Without the web console.")
@click.option("--read-only", is_flag=True, help="Nothing can be started, changed or decided.")
@click.option("--max-body", metavar="BYTES", type=click.IntRange(1), help="The largest body. Default: 10 MB.")
@click.option(
    "--max-streams", metavar="N", type=click.IntRange(1), help="How many streams may be open at once. Default: 2000."
)
@click.option("--mcp-stdio", is_flag=True, help="Serve one MCP client over stdin and stdout, and nothing else.")
@common
@click.pass_obj
def serve(settings: Settings, /, target: str, hosts: tuple[str, ...], port: int, **options: Any) -> None:
    """Serve the agents of a program over HTTP, execute the runs that are started there, and continue interrupted ones.

    MODULE is imported, and so executed, as from the current directory; SWARM is its `DurableSwarm`. Prints the one
    address that signs in, with the token in it; $DURABLE_SWARM_SERVER_TOKEN sets the token. Ctrl+C ends it: runs in
    progress stay unfinished, and continue when it is started again.
    """
    from durable_swarm.server import DOORS, checked_doors, server_parts

    if options["mcp_stdio"]:
        _serve_stdio(settings, target)
        return
    check_proxy(options)
    doors = checked_doors(options["doors"] or DOORS)
    made, access = server_parts()
    swarm = _loaded(settings, target)
    more = {name: options[name] for name in ("read_only", "max_body", "max_streams") if options[name] is not None}

    def app_for(who: Access) -> Server:
        return made(swarm, None, doors, who, console=not options["no_console"], **more)

    def ready(url: str) -> None:
        click.echo(f"{target} is served ({', '.join(doors)}) at {url}")
        sys.stdout.flush()

    with swarm:
        listen(app_for, access, hosts, port, options, ready)


def _loaded(settings: Settings, target: str) -> DurableSwarm:
    """Return the program's swarm. Raises `Problem` if the program defines no agent."""
    swarm = load(settings, target)
    if not agents.names():
        raise Problem(f"Error: {target} defines no agent, so there is nothing to serve; import them in its module.", 2)
    return swarm


def _serve_stdio(settings: Settings, target: str) -> None:
    import asyncio

    from durable_swarm.server.backend import MOST, Backend
    from durable_swarm.server.doors import door_of

    door = door_of("mcp")
    with _loaded(settings, target) as swarm:
        backend = Backend(swarm, None, MOST)
        try:
            asyncio.run(door(backend).serve_stdio())
        finally:
            backend.close()
