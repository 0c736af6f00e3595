"""`console`: the web console of a database."""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import Any

import click

from durable_swarm.cli.options import Settings, common, user_name

PORT = 8700


@click.command(short_help="Serve the web console: runs, the inbox, live.")
@click.option(
    "--host",
    "hosts",
    metavar="NAME",
    multiple=True,
    default=["127.0.0.1"],
    show_default="127.0.0.1",
    help="Where to listen. Given again: a further name by which browsers may call it.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Nothing can be changed or decided.")
@click.option("--no-browser", is_flag=True, help="Open no browser.")
@click.option("--root-path", metavar="PREFIX", default="", help="The path a proxy serves it under, and strips.")
@click.option("--user", metavar="NAME", default=user_name, show_default="your login name", help="Who decides.")
@click.option("--user-header", metavar="NAME", help="The header in which a --proxy names who decides.")
@click.option("--proxy", "proxies", metavar="ADDRESS", multiple=True, help="A proxy whose --user-header is believed.")
@common
@click.pass_obj
def console(settings: Settings, /, hosts: tuple[str, ...], port: int, **options: Any) -> None:
    """Serve the web console of the database: runs, one run live, the inbox, sessions, workers, health.

    Prints the one address that signs in, with the token in it; $DURABLE_SWARM_SERVER_TOKEN sets the token. Ctrl+C ends
    it; the runs, which other processes execute, are not affected.
    """
    from durable_swarm.server import parts

    if options["user_header"] and not options["proxies"]:
        raise click.UsageError("--user-header needs the --proxy that sets it")
    made, access = parts()
    from durable_swarm.server import serving  # Needs the extra, too.

    token, root_path = serving.token_for(hosts[0]), "/" + options["root_path"].strip("/")
    who = access(
        token=token,
        hosts=serving.names_of(hosts),
        name=options["user"],
        header=options["user_header"],
        proxies=options["proxies"],
    )
    app = made(settings.database, who, read_only=options["read_only"])

    def ready(taken: int) -> None:
        url = serving.address(hosts[0], taken, root_path.rstrip("/"), token)
        click.echo(f"The console is at {url}")
        sys.stdout.flush()
        if not options["no_browser"] and sys.stdout.isatty() and _has_screen():
            webbrowser.open(url)

    serving.serve(app, hosts[0], port, root_path.rstrip("/"), ready)


def _has_screen() -> bool:
    """Return True unless a browser would open in the terminal, or nowhere."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
