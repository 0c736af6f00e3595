"""`completion`: a script that lets a shell complete commands, options and ids; and what ids there are to complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

from durable_swarm.cli.options import Settings
from durable_swarm.errors import DurableSwarmError

if TYPE_CHECKING:
    from durable_swarm.service import Runs

VARIABLE = "_DURABLE_SWARM_COMPLETE"
"""The variable by which the script asks the program for completions, as click names it."""

MOST = 50
"""The number of ids that are offered at most."""

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print a script that completes commands and ids in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for bash, zsh or fish that completes commands, options, and the ids of runs and requests.

    In ~/.bashrc, and with zsh in ~/.zshrc: eval "$(durable-swarm completion bash)". With fish, in
    ~/.config/fish/config.fish: durable-swarm completion fish | source.
    """
    found = get_completion_class(shell)
    if found is not None:
        program = context.find_root()
        click.echo(found(program.command, {}, str(program.info_name), VARIABLE).source())


def _ids(read: Callable[[Runs, str], list[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes ids; without a database that can be read, it offers none."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        from durable_swarm.service import open_runs  # With the engine, which `--help` does not need.

        try:
            with open_runs(context.ensure_object(Settings).database) as opened:
                return [found for found in read(opened, begun) if found.startswith(begun)]
        except DurableSwarmError:
            return []

    return complete


def _runs(opened: Runs, begun: str) -> list[str]:
    from durable_swarm.service import Query

    return [view.id for view in opened.list(Query(limit=MOST, search=begun or None))]


def _requests(opened: Runs, _begun: str) -> list[str]:
    return [request.id for request in opened.inbox.list(limit=MOST)]


run_argument = click.argument("run_id", metavar="ID", shell_complete=_ids(_runs))
optional_run_argument = click.argument("run_id", metavar="[ID]", required=False, shell_complete=_ids(_runs))
request_argument = click.argument("request_id", metavar="ID", shell_complete=_ids(_requests))
