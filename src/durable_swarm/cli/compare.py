"""`compare`: two runs, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
from rich.text import Text

from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.cli.render import DIM, plain_console, print_line, width_of
from durable_swarm.display import one_line, shorten
from durable_swarm.service import Compared, Comparison, open_runs, to_json

STYLES = {" ": "", "-": "red", "+": "green"}


@click.command(short_help="Compare two runs turn by turn.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@as_json
@common
@click.pass_obj
def compare(settings: Settings, first: str, second: str, as_json: bool) -> int:
    """Compare two runs turn by turn, such as a run and its fork. The exit code is 1 if they differ.

    A fork is aligned with its source by the turns that it keeps, other runs by the agents that answered and the tools
    that they called. Lines of A begin with -, lines of B with +.
    """
    with open_runs(settings.database) as opened:
        found = opened.compare(first, second)
    if as_json:
        click.echo(json.dumps({**to_json(found), "same": found.same}, indent=2))
    else:
        _draw(found)
    return int(not found.same)


def _draw(found: Comparison) -> None:
    console = plain_console()
    width = width_of(console)
    verdict = "same" if found.same else "differ"
    print_line(console, Text(one_line(f"{found.first} and {found.second}: {verdict}"), "bold"))
    for part in found.parts:
        for line in _lines(part, width):
            print_line(console, line)


def _lines(part: Compared, width: int) -> Iterator[Text]:
    """Yield the lines of a part: of one that is the same, only its name."""
    yield Text(f"{_name(part)}: {'same' if part.same else 'differs'}", DIM if part.same else "yellow")
    if not part.same:
        for line in part.lines:
            yield Text(f"  {line.mark} {shorten(one_line(line.text), max(width - 4, 20))}", STYLES[line.mark])


def _name(part: Compared) -> str:
    left, right = part.turns
    if left is None and right is None:
        return part.name
    if left is None or right is None:
        return f"{part.name} {right if left is None else left}, only in {'B' if left is None else 'A'}"
    return f"{part.name} {left}" if left == right else f"{part.name} {left} of A, {right} of B"
