"""`check`: reports which unfinished runs the present code can continue."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from durable_swarm.cli.loading import load
from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.display import one_line
from durable_swarm.service import to_json
from durable_swarm.service.compatibility import Compatibility, check_runs, unchecked_runs


@click.command(short_help="Report which unfinished runs a program can continue.")
@click.argument("target", metavar="MODULE:SWARM")
@as_json
@common
@click.pass_obj
def check(settings: Settings, target: str, as_json: bool) -> int:
    """Report which unfinished runs the present code can continue, and why not the others; exit code 1 if there are any.

    Runs that the swarm's changed_agents="hold" is to hold, because an agent has changed, count as runs that cannot
    continue.

    MODULE is imported, SWARM is its `DurableSwarm`; no run is executed or changed. Importing executes the module, so
    put what starts runs behind `if __name__ == "__main__":`. Run this command with new code before you deploy it. The
    steps inside a tool call in progress are known only when it is called again, so they are not checked.
    """
    swarm = load(settings, target)
    found = check_runs(swarm)
    if as_json:
        click.echo(json.dumps([to_json(fit) for fit in found], indent=2))
    else:
        for fit in found:
            click.echo(one_line(_told(fit)))
        click.echo(_summed(found))
        for name, number in sorted(unchecked_runs(swarm).items()):
            where = "its name is DurableSwarm(name=...), or the script of `durable-swarm run`"
            click.echo(f"Not checked: {number} unfinished of swarm {one_line(name)!r}; {where}.", err=True)
    return int(any(fit.problem or fit.held for fit in found))


def _summed(found: Sequence[Compatibility]) -> str:
    stuck, held = sum(bool(fit.problem) for fit in found), sum(fit.held for fit in found)
    more = f", {held} to be held" if held else ""
    return f"{len(found)} unfinished, {stuck} of them cannot continue with this code{more}."


def _told(fit: Compatibility) -> str:
    if fit.problem:
        return f"{fit.run_id} ({fit.status}) cannot continue: {fit.problem}"
    changed = f"agent {fit.agent!r} has changed since it last answered" if fit.changed else ""
    if fit.held:
        return f"{fit.run_id} ({fit.status}) is to be held: {changed}"
    return f"{fit.run_id} ({fit.status}) continues{'; ' if changed else ''}{changed}"
