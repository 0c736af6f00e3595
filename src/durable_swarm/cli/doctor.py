"""`doctor`: checks that the installation and the database are fit to keep runs."""

from __future__ import annotations

import json

import click
from rich.text import Text

from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.cli.render import plain_console
from durable_swarm.display import one_line
from durable_swarm.service import Check, checkup, to_json

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@as_json
@common
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> int:
    """Check the installation and the database. Exit code 1 if something fails."""
    checks = checkup(settings.database)
    if as_json:
        click.echo(json.dumps([to_json(check) for check in checks], indent=2))
    else:
        _draw(checks)
    return int(any(check.level == "fail" for check in checks))


def _draw(checks: list[Check]) -> None:
    console = plain_console()
    width = max(len(check.name) for check in checks)
    for check in checks:
        line = Text.assemble(
            (f"{check.level:4}", _STYLES[check.level]), f"  {check.name:{width}}  {one_line(check.text)}"
        )
        console.print(line, soft_wrap=True)
