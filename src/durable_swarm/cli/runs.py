"""`runs`, `show`, `resume`, `cancel`: inspect the runs of a database, and act on one."""

from __future__ import annotations

import json
from datetime import datetime
from typing import cast

import click

from durable_swarm.cli.completion import optional_run_argument, run_argument
from durable_swarm.cli.options import STARTS, Settings, as_json, by_person, common
from durable_swarm.cli.render import draw_run
from durable_swarm.cli.render_runs import draw_runs
from durable_swarm.cli.times import Since
from durable_swarm.display import one_line
from durable_swarm.runs import STATES, State
from durable_swarm.service import INTERRUPTED, Query, RunView, open_runs, to_json


@click.command()
@click.option("--status", type=click.Choice([*STATES, INTERRUPTED]), help="Only runs of this status.")
@click.option("--agent", metavar="NAME", help="Only runs that were started with this agent.")
@click.option("--swarm", metavar="NAME", help="Only runs of the swarm of this name.")
@click.option("--search", metavar="TEXT", help="Only runs with this text in their ID.")
@click.option("--since", metavar="TIME", type=Since(), help="Only runs started since; ISO 8601, or 2h.")
@click.option("--before", metavar="ID", help="Only runs older than this one, such as the last of a page.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), default=100, show_default=True, help="At most N runs."
)
@click.option(
    "--watch",
    metavar="[SECONDS]",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    help="Keep the list open; a run that has changed is bold. In a pipe, a line for each change.",
)
@as_json
@common
@click.pass_obj
def runs(
    settings: Settings,
    status: str | None,
    agent: str | None,
    swarm: str | None,
    search: str | None,
    since: datetime | None,
    before: str | None,
    limit: int,
    watch: float | None,
    as_json: bool,
) -> None:
    """List runs, newest first.

    An interrupted run is unfinished, and no living process executes it: it continues in the next program that defines
    its agent. The last column gives the reason why a run does not continue. As JSON a run has all this as
    fields; the status of an interrupted one is "running", and "idle" is true.
    """
    idle = status == INTERRUPTED
    chosen = "running" if idle else cast(State | None, status)
    query = Query(chosen, agent, limit, idle, swarm=swarm, search=search, since=since, before=before)
    with open_runs(settings.database) as opened:
        if watch is not None:
            from durable_swarm.cli.watch_list import watch_runs

            watch_runs(opened, query, watch, as_json=as_json)
            return
        found = opened.list(query)
    if as_json:
        click.echo(json.dumps([to_json(view) for view in found], indent=2))
    else:
        draw_runs(found)


@click.command(short_help="Show a run and every step of it.")
@run_argument
@as_json
@common
@click.pass_obj
def show(settings: Settings, run_id: str, as_json: bool) -> None:
    """Show a run: its input, every step, and its state.

    A prefix of the ID is enough if it fits no other run. Model steps name the version of the agent that answered: it
    changes when the agent's prompt, tools or model change.
    """
    with open_runs(settings.database) as opened:
        detail = opened.show(run_id)
    if as_json:
        click.echo(json.dumps(to_json(detail), indent=2))
    else:
        draw_run(detail, settings.command)


@click.command(short_help="Let a failed, cancelled or held run continue, or all failed ones.")
@optional_run_argument
@click.option("--all", "all_failed", is_flag=True, help="All failed runs, or those that the other options select.")
@click.option("--agent", metavar="NAME", help="With --all: only runs that were started with this agent.")
@click.option("--since", metavar="TIME", type=Since(), help="With --all: only runs that failed since; ISO 8601, or 2h.")
@click.option("--error", metavar="CLASS", help="With --all: only runs that failed with this error, such as ModelError.")
@as_json
@by_person
@common
@click.pass_obj
def resume(
    settings: Settings,
    run_id: str | None,
    all_failed: bool,
    agent: str | None,
    since: datetime | None,
    error: str | None,
    as_json: bool,
    by: str | None,
) -> None:
    """Let a failed or cancelled run continue from its first unfinished step.

    Finished steps are not executed again. The run continues in the program that defines its agent: in one that works on
    this database now, else when it is started next. A run that is held because an agent has changed continues with the
    version that it is held for. A run that waits for its provider asks it at once.
    """
    if all_failed == (run_id is not None) or (not all_failed and (agent or since or error)):
        raise click.UsageError("Give the ID of a run, or --all; --agent, --since and --error select among all.")
    with open_runs(settings.database) as opened:
        if run_id is None:
            views = opened.resume_failed(agent=agent, since=since, error=error, by=by)
            text = _all_resumed(views)
        else:
            held = opened.view(run_id).waits_for
            views = [opened.resume(run_id, by)]
            text = [_resumed(views[0], held)]
    if as_json:
        found = [to_json(view) for view in views]
        click.echo(json.dumps(found if all_failed else found[0], indent=2))
    else:
        for line in text:
            click.echo(one_line(line))


def _all_resumed(views: list[RunView]) -> list[str]:
    count = f"{len(views)} run{'s' * (len(views) != 1)}"
    if not views:
        return ["No failed run was selected; nothing was resumed."]
    programs = "They continue in the programs that define their agents: at once, or when these are started next."
    return [*(f"{view.id}  {view.agent}" for view in views), f"Resumed {count}. {programs}"]


def _resumed(view: RunView, held: str | None) -> str:
    if view.status == "done":
        return f"Run {view.id} is done; there is nothing to resume."
    if not view.idle:
        accepted = f"; accepted is that {held.partition(';')[0]}" if held and not view.waits_for else ""
        return f"Run {view.id} is {view.status}{accepted}."
    return (
        f"Run {view.id} continues when the program that defines agent {view.agent!r} runs: now, if it is running, or "
        f"when it next uses its DurableSwarm. {STARTS}"
    )


@click.command()
@run_argument
@by_person
@common
@click.pass_obj
def cancel(settings: Settings, run_id: str, by: str | None) -> None:
    """Stop a run at its next checkpoint. `resume` lets it continue; a run that has ended stays as it is."""
    with open_runs(settings.database) as opened:
        view = opened.cancel(run_id, by)
    ended = "is cancelled" if view.status == "cancelled" else f"has ended ({view.status}), and stays as it is"
    click.echo(one_line(f"Run {view.id} {ended}."))
