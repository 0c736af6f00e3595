"""`export`, `import`, `fork`: move a run to another database, and continue from one of its turns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from durable_swarm.cli.completion import run_argument
from durable_swarm.cli.options import STARTS, Problem, Settings, as_json, by_person, common
from durable_swarm.display import one_line
from durable_swarm.progress import progress
from durable_swarm.redaction import Redacting
from durable_swarm.service import Redact, RunDetail, import_run, open_runs, read_document, renamed, to_json


@click.command(short_help="Write a run to a JSON file.")
@run_argument
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Default: standard output.")
@click.option(
    "--redact", metavar="REGEX", multiple=True, help="Write [redacted] for whatever matches. May be given repeatedly."
)
@common
@click.pass_obj
def export(settings: Settings, run_id: str, output: Path | None, redact: tuple[str, ...]) -> None:
    """Write all records of a run as one JSON document, which `import` reads.

    It contains every message in the clear, also those that are encrypted in the database (with the keys of
    $DURABLE_SWARM_ENCRYPTION_KEYS): --redact masks secrets. Keys of dictionaries and the names of agents, tools and
    steps are written as they are.
    """
    with progress("Exporting the run"), open_runs(settings.database) as opened:
        document = opened.export(run_id, _masking(redact))
        text = json.dumps(document, indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)
        click.echo(one_line(f"Run {document['id']} is in {output}."))


def _masking(patterns: tuple[str, ...]) -> Redact | None:
    if not patterns:
        return None
    masking = Redacting(patterns)

    def redact(_path: str, value: object) -> object:
        if isinstance(value, str) or value is None or isinstance(value, bool):
            return masking.text(value) if isinstance(value, str) else value
        return "[redacted]" if masking.text(str(value)) != str(value) else value

    return redact


def _write(path: Path, text: str) -> None:
    """Write the file so that no other user may read it."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Problem(f"Error: {path} cannot be written: {error.strerror}. Name another with --output.") from error


@click.command("import", short_help="Put an exported run into the database.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--id", "new_id", metavar="ID", help="The id it gets here. Default: the one it had.")
@as_json
@common
@click.pass_obj
def import_(settings: Settings, file: Path, new_id: str | None, as_json: bool) -> None:
    """Put a run that `export` wrote into the database, which is created if it does not exist. `-` is standard input.

    The run has ended there: it can be shown, replayed and forked. Nothing is executed. Importing the same file again
    changes nothing.
    """
    content = _read(file)
    with progress("Importing the run"):
        document = read_document(content)
        view = import_run(settings.database, document if new_id is None else renamed(document, new_id))
    text = f"Run {view.id} ({view.status}) is there; see: {settings.command('show', view.id)}"
    click.echo(json.dumps(to_json(view), indent=2) if as_json else one_line(text))


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise Problem(f"Error: {path} cannot be read: {error.strerror}. Name a file that `export` wrote.") from error


@click.command(short_help="Start a new run from a turn of another.")
@run_argument
@click.option(
    "--turn", metavar="N", type=click.IntRange(min=0), required=True, help="The first turn that is made again, from 0."
)
@click.option("--agent", metavar="NAME", help="Continue with this agent. Default: the one whose turn it is.")
@click.option("--message", metavar="TEXT", multiple=True, help="Add a user's message first. May be given repeatedly.")
@click.option("--id", "new_id", metavar="ID", help="The id of the new run. Default: a new one.")
@as_json
@by_person
@common
@click.pass_obj
def fork(
    settings: Settings,
    run_id: str,
    turn: int,
    agent: str | None,
    message: tuple[str, ...],
    new_id: str | None,
    as_json: bool,
    by: str | None,
) -> None:
    """Start a new run that keeps the turns before N, as `show` numbers them, and executes the others anew.

    The kept turns are not executed again. The run continues with the present code, in the program that defines its
    agent: in one that works on this database now, else when it is started next. The original run stays as it is.
    """
    messages = [{"role": "user", "content": text} for text in message] or None
    with open_runs(settings.database) as opened:
        view = opened.fork(run_id, turn, agent=agent, messages=messages, new_id=new_id, by=by)
        known = opened.show(run_id)
    if agent is not None and agent not in _agents(known):
        text = (
            f"Warning: run {known.id} has no agent {agent!r}; check the name. The new run waits for a program with it."
        )
        click.echo(one_line(text), err=True)
    text = (
        f"Run {view.id} continues from turn {turn} of run {view.forked_from} when the program that defines agent "
        f"{view.agent!r} runs, or next uses its DurableSwarm. {STARTS}"
    )
    click.echo(json.dumps(to_json(view), indent=2) if as_json else one_line(text))


def _agents(run: RunDetail) -> set[str | None]:
    """Return the names of the agents that took part in a run."""
    return {run.agent, run.last_agent, *(step.name.partition(":")[2] for step in run.steps if step.kind == "model")}
