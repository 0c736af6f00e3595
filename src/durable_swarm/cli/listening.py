"""The options of commands that serve HTTP, and what they do alike: `console` and `serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from durable_swarm.cli.options import user_name

if TYPE_CHECKING:
    from durable_swarm.server.guard import Access
    from durable_swarm.server.serving import Served

Command = TypeVar("Command", bound=Callable[..., object])


def listening(port: int, callers: str) -> Callable[[Command], Command]:
    """Give a command the options of an HTTP server; `callers` says who calls it."""
    ports = click.IntRange(0, 65535)
    options = (
        click.option(
            "--host",
            "hosts",
            metavar="NAME",
            multiple=True,
            default=["127.0.0.1"],
            show_default="127.0.0.1",
            help=f"Where to listen. Given again: a further name by which {callers} may call it.",
        ),
        click.option("--port", type=ports, default=port, show_default=True, help="0 takes a free one."),
        click.option("--root-path", metavar="PREFIX", default="", help="The path a proxy serves it under, and strips."),
        click.option(
            "--user",
            metavar="NAME",
            default=user_name,
            show_default="your login name",
            help="The name recorded with decisions.",
        ),
        click.option("--user-header", metavar="NAME", help="The header in which a --proxy names who decides."),
        click.option(
            "--proxy", "proxies", metavar="ADDRESS", multiple=True, help="A proxy whose --user-header is believed."
        ),
    )

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def check_proxy(options: Mapping[str, object]) -> None:
    """Check that a header that names who decides comes from a proxy. Raises `UsageError`."""
    if options["user_header"] and not options["proxies"]:
        raise click.UsageError("--user-header needs the --proxy that sets it")


def listen(
    app_for: Callable[[Access], Served],
    access: type[Access],
    hosts: Sequence[str],
    port: int,
    options: dict[str, Any],
    ready: Callable[[str], None],
) -> None:
    """Serve the application that `app_for` makes with these rules of access; `ready` gets the address that signs in."""
    from durable_swarm.server import serving  # Needs the extra.

    token, path = serving.token_for(hosts[0]), ("/" + options["root_path"].strip("/")).rstrip("/")
    who = access(
        token=token,
        hosts=serving.names_of(hosts),
        name=options["user"],
        header=options["user_header"],
        proxies=options["proxies"],
    )

    def taken(number: int) -> None:
        ready(serving.address(serving.called(hosts), number, path, token))

    serving.serve(app_for(who), hosts[0], port, path, taken)
