"""`inbox`, `answer`, `approve`, `reject`, `complete`, `say`: requests of runs, and the ways to answer them."""

from __future__ import annotations

import json

import click

from durable_swarm.cli.completion import request_argument, run_argument
from durable_swarm.cli.options import Settings, as_json, by_person, common
from durable_swarm.cli.render import draw_requests
from durable_swarm.display import one_line
from durable_swarm.requests import Request
from durable_swarm.service import Runs, open_runs, to_json

WHERE = {
    True: "in its process",
    False: "when its program is started",
    None: "in the program that defines its agent: now, if it is running, else when it is next started",
}
"""Where an answered run continues, by the result of `Inbox.goes_on`."""

DECIDED = 50
"""How many decided requests are listed without a limit."""


@click.command(short_help="List what runs ask, oldest first.")
@click.option(
    "--run", "run_id", metavar="ID", help="Only the requests of this run; a prefix that fits no other run is enough."
)
@click.option("--limit", metavar="N", type=click.IntRange(1, 1_000_000), help="At most N requests.")
@click.option("--watch", is_flag=True, help="Keep the list open, with a bell for each new request.")
@click.option("--decided", is_flag=True, help="Those that were decided, and by whom; the last one first, 50 at most.")
@as_json
@common
@click.pass_obj
def inbox(settings: Settings, run_id: str | None, limit: int | None, watch: bool, decided: bool, as_json: bool) -> None:
    """List the open requests of all runs, oldest first: questions to people and programs.

    `answer`, `approve`, `reject` and `complete` decide about them.
    """
    if decided and (watch or run_id is not None):
        raise click.UsageError("--decided is about all runs, and does not watch; `show ID` has those of one run.")
    with open_runs(settings.database) as opened:
        if watch:
            from durable_swarm.cli.watch_list import watch_inbox

            watch_inbox(opened, settings, run_id, limit, as_json=as_json)
            return
        found = opened.inbox.closed(limit or DECIDED) if decided else opened.inbox.list(run_id, limit)
    if as_json:
        click.echo(json.dumps([to_json(request) for request in found], indent=2))
    else:
        draw_requests(found, settings.command)


@click.command(short_help="Answer what a run asks.")
@request_argument
@click.argument("value")
@by_person
@common
@click.pass_obj
def answer(settings: Settings, request_id: str, value: str, by: str | None) -> None:
    """Answer a question with VALUE; or state that a call of unknown outcome happened, with this result.

    ID is that of the request, or of a run with one open request.
    """
    with open_runs(settings.database) as opened:
        _tell(opened, opened.inbox.answer(request_id, value, by), "answered")


@click.command(short_help="Approve a call that a run wants to make.")
@request_argument
@click.option(
    "--arguments", metavar="JSON", help="Approve the call with these arguments, all of them, in place of its own."
)
@by_person
@common
@click.pass_obj
def approve(settings: Settings, request_id: str, arguments: str | None, by: str | None) -> None:
    """Approve a call exactly as the request shows it; or have a call of unknown outcome repeated.

    ID is that of the request, or of a run with one open request.
    """
    with open_runs(settings.database) as opened:
        _tell(opened, opened.inbox.approve(request_id, _object(arguments), by), "approved")


def _object(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--arguments is not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise click.UsageError('--arguments must be a JSON object, such as {"amount": 5}.')
    return given


@click.command(short_help="Reject a call that a run wants to make.")
@request_argument
@click.option("--reason", metavar="TEXT", default="", help="Why; the agent gets the reason.")
@by_person
@common
@click.pass_obj
def reject(settings: Settings, request_id: str, reason: str, by: str | None) -> None:
    """Reject a call: it is not made, and the agent receives the rejection.

    ID is that of the request, or of a run with one open request.
    """
    with open_runs(settings.database) as opened:
        _tell(opened, opened.inbox.reject(request_id, reason, by), "rejected")


@click.command(short_help="Post the result that a tool has announced with later().")
@click.argument("token")
@click.argument("result")
@by_person
@common
@click.pass_obj
def complete(settings: Settings, token: str, result: str, by: str | None) -> None:
    """Post the RESULT of a tool call that has returned `later(TOKEN)`. It is accepted once."""
    with open_runs(settings.database) as opened:
        request = opened.inbox.complete(token, result, by)
        kept = "No run waits for it yet: it is kept for the call that gives this token."
        then = kept if request is None else _then(opened, request.run_id)
    click.echo(one_line(f"Result for {token} posted. {then}"))


@click.command(short_help="Send a message to a run in progress.")
@run_argument
@click.argument("text")
@by_person
@common
@click.pass_obj
def say(settings: Settings, run_id: str, text: str, by: str | None) -> None:
    """Add TEXT as a user's message to a run; the agent receives it with its next model call.

    A prefix of the run's ID is enough if it fits no other run.
    """
    with open_runs(settings.database) as opened:
        then = _then(opened, opened.inbox.say(run_id, text, by))
    click.echo(one_line(f"The agent gets it with its next model call. {then}"))


def _tell(opened: Runs, request: Request, verb: str) -> None:
    by = f" by {request.answered_by}" if request.answered_by else ""
    click.echo(one_line(f"Request {request.id} is {verb}{by}. {_then(opened, request.run_id)}"))


def _then(opened: Runs, run_id: str) -> str:
    """Return where the run continues, and the number of its other requests."""
    text = f"Run {run_id} continues {WHERE[opened.inbox.goes_on(run_id)]}"
    left = len(opened.inbox.list(run_id))
    return f"{text}; it has {left} open request{'s' * (left > 1)}." if left else f"{text}."
