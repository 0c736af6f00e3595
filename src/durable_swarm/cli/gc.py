"""`gc`: deletes runs that ended long ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from durable_swarm.cli.options import Settings, common
from durable_swarm.cli.times import Age
from durable_swarm.progress import progress
from durable_swarm.service import open_runs


@click.command(short_help="Delete runs that ended long ago.")
@click.option(
    "--older-than",
    metavar="AGE",
    type=Age(),
    required=True,
    help="Time since the run ended: 30d, 12h, 90m (minutes) or 2w.",
)
@click.option("--keep-failed", is_flag=True, help="Keep the runs that failed.")
@click.option("--swarm", metavar="NAME", help="Only runs of the DurableSwarm of this name.")
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@common
@click.pass_obj
def gc(settings: Settings, older_than: timedelta, keep_failed: bool, swarm: str | None, dry_run: bool) -> None:
    """Delete runs that ended long ago, with their tool calls, events, requests and all other data that belongs to them.

    A run that is in progress or waits is never deleted. An id is forgotten with its run: the same id later is a new
    run.
    """
    try:
        before = datetime.now(UTC) - older_than
    except OverflowError:
        before = datetime(1970, 1, 1, tzinfo=UTC)
    with open_runs(settings.database) as opened, progress("Counting runs" if dry_run else "Deleting runs") as tell:
        count = opened.forget(before, keep_failed=keep_failed, swarm=swarm, dry_run=dry_run, progress=tell)
    runs = f"{count} run{'s' * (count != 1)} that ended before {before:%Y-%m-%d %H:%M} UTC"
    click.echo(f"Would delete {runs}." if dry_run else f"Deleted {runs}.")
