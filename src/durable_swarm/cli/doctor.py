"""`doctor`: checks that the installation and the database are fit to keep runs."""

from __future__ import annotations

import json

import click
from rich.text import Text

from durable_swarm.cli.options import Settings, as_json, common
from durable_swarm.cli.render import plain_console
from durable_swarm.display import one_line
from durable_swarm.service import Check, checkup, to_json
from durable_swarm.service.doctor import check_toolsets

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command(short_help="Check the installation, the database and MCP servers.")
@click.argument("target", metavar="[MODULE:SWARM]", required=False)
@as_json
@common
@click.pass_obj
def doctor(settings: Settings, target: str | None, as_json: bool) -> int:
    """Check the installation and the database. Exit code 1 if something fails.

    With MODULE:SWARM the program is imported, too, and each MCP server of its agents is tried. Importing executes the
    module, so put what starts runs behind `if __name__ == "__main__":`.
    """
    swarm = None
    if target is not None:
        from durable_swarm.cli.loading import load  # Imports the engine's programs, which no other check needs.

        swarm = load(settings, target)
    checks = [*checkup(settings.database if swarm is None else swarm.database), *check_toolsets()]
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
