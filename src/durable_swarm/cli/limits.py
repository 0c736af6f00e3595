"""`extend`: let a run spend more than its limits allow."""

from __future__ import annotations

import click

from durable_swarm.cli.completion import run_argument
from durable_swarm.cli.options import Settings, by_person, common
from durable_swarm.display import one_line
from durable_swarm.service import open_runs


@click.command()
@run_argument
@click.option("--requests", metavar="N", type=int, help="N more model calls.")
@click.option("--tool-calls", metavar="N", type=int, help="N more tool calls.")
@click.option("--input-tokens", metavar="N", type=int, help="N more tokens in the requests.")
@click.option("--output-tokens", metavar="N", type=int, help="N more tokens in the replies.")
@click.option("--total-tokens", metavar="N", type=int, help="N more tokens.")
@click.option("--cost", metavar="DOLLARS", help="More US dollars.")
@click.option("--seconds", metavar="S", type=float, help="S more seconds of work.")
@click.option("--repeats", metavar="N", type=int, help="N more failing repetitions of one tool call.")
@by_person
@common
@click.pass_obj
def extend(settings: Settings, /, run_id: str, by: str | None, **more: object) -> None:
    """Add amounts to the limits of a run.

    A run that failed because of a limit continues after `resume`. What the run has spent stays counted.
    """
    amounts = {name: amount for name, amount in more.items() if amount is not None}
    if not amounts:
        raise click.UsageError("Give at least one amount, such as --requests 50.")
    with open_runs(settings.database) as opened:
        view = opened.extend(run_id, amounts, by)
    text = f"Run {view.id} may spend more: {', '.join(f'{name} +{amount}' for name, amount in amounts.items())}."
    if view.status == "failed":
        text += f" Continue it: {settings.command('resume', view.id)}"
    click.echo(one_line(text))
