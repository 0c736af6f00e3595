"""`schedules`: the runs that begin at given times."""

from __future__ import annotations

import json

import click
from rich.table import Table

from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.cli.render import plain_console
from durable_swarm.display import one_line
from durable_swarm.service import open_runs, to_json
from durable_swarm.service.schedules import ScheduleView


@click.command(short_help="List schedules; pause, resume and delete them.")
@click.option("--pause", metavar="NAME", help="Pause this schedule: it begins no more runs.")
@click.option("--resume", metavar="NAME", help="Continue this schedule with its next time from now on.")
@click.option("--delete", metavar="NAME", help="Delete this schedule; the runs that it has begun stay.")
@as_json
@common
@click.pass_obj
def schedules(settings: Settings, pause: str | None, resume: str | None, delete: str | None, as_json: bool) -> None:
    """List the schedules of the database with their next times, after a change if one is asked for.

    Programs make schedules, by `DurableSwarm.schedule`; one that makes a deleted schedule again begins it anew.
    """
    with open_runs(settings.database) as opened:
        if pause is not None:
            opened.schedules.pause(pause)
        if resume is not None:
            opened.schedules.resume(resume)
        if delete is not None:
            opened.schedules.delete(delete)
        found = opened.schedules.list()
    if as_json:
        click.echo(json.dumps([to_json(view) for view in found], indent=2))
    elif found:
        plain_console().print(_table(found))
    else:
        click.echo("No schedules.")


def _table(found: list[ScheduleView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "AGENT", "TIMES", "NEXT"):
        table.add_column(column, overflow="fold")
    for view in found:
        table.add_row(one_line(view.name), one_line(view.agent), one_line(view.times), view.following)
    return table
