"""`sessions`, `session`: the conversations of a database."""

from __future__ import annotations

import json

import click

from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.cli.render_sessions import draw_session, draw_sessions
from durable_swarm.service import open_runs, to_json


@click.command()
@click.option("--agent", metavar="NAME", help="Only sessions whose next message this agent answers.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), default=100, show_default=True, help="At most N sessions."
)
@as_json
@common
@click.pass_obj
def sessions(settings: Settings, agent: str | None, limit: int, as_json: bool) -> None:
    """List sessions, the latest change first.

    The status is that of the run in progress, as in `durable-swarm runs`, or "idle". WAITING counts the messages that
    wait for their turn. As JSON the status of an interrupted run is "running", and "interrupted" is true.
    """
    with open_runs(settings.database) as opened:
        found = opened.sessions.listed(agent, limit)
    if as_json:
        click.echo(json.dumps([to_json(view) for view in found], indent=2))
    else:
        draw_sessions(found)


@click.command(short_help="Show the conversation of a session.")
@click.argument("session_id", metavar="ID")
@as_json
@common
@click.pass_obj
def session(settings: Settings, session_id: str, as_json: bool) -> None:
    """Show a session: its state, its runs, and the whole conversation.

    A prefix of the ID is enough if it fits no other session.
    """
    with open_runs(settings.database) as opened:
        detail = opened.sessions.show(session_id)
    if as_json:
        click.echo(json.dumps(to_json(detail), indent=2))
    else:
        draw_session(detail, settings.command)
