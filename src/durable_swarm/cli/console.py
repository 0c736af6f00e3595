"""`console`: the web console of a database."""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import TYPE_CHECKING, Any

import click

from durable_swarm.cli.listening import check_proxy, listen, listening
from durable_swarm.cli.options import Settings, common

if TYPE_CHECKING:
    from durable_swarm.server.guard import Access
    from durable_swarm.server.web.app import Console

PORT = 8700


@click.command(short_help="Serve the web console: runs and the inbox, live in a browser.")
@listening(PORT, "browsers")
@click.option("--read-only", is_flag=True, help="Nothing can be changed or decided.")
@click.option(
    "--max-streams", metavar="N", type=click.IntRange(1), help="How many streams may be open at once. Default: 2000."
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@common
@click.pass_obj
def console(settings: Settings, /, hosts: tuple[str, ...], port: int, **options: Any) -> None:
    """Serve the web console of the database: runs, one run live, the inbox, sessions, workers, health.

    Prints the one address that signs in, with the token in it; $DURABLE_SWARM_SERVER_TOKEN sets the token. Ctrl+C ends
    it; the runs, which other processes execute, are not affected.
    """
    from durable_swarm.server import parts
    from durable_swarm.server.open_streams import MOST_STREAMS, OpenStreams

    check_proxy(options)
    made, access = parts()

    def ready(url: str) -> None:
        click.echo(f"The console is at {url}")
        sys.stdout.flush()
        if not options["no_browser"] and sys.stdout.isatty() and _has_screen():
            webbrowser.open(url)

    def app_for(who: Access) -> Console:
        streams = OpenStreams(options["max_streams"] or MOST_STREAMS)
        return made(settings.database, who, read_only=options["read_only"], streams=streams)

    listen(app_for, access, hosts, port, options, ready)


def _has_screen() -> bool:
    """Return True unless a browser would open in the terminal, or nowhere."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
