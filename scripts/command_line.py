"""Writes the list of commands in `docs/command-line.md` from the command line itself. A test compares the two.

python scripts/command_line.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from durable_swarm.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
MARK = "<!-- Everything below this line is made by `make reference`. -->\n"
EVERYWHERE = {"--database", "--debug", "--help", "--json"}
"""Options that the first part of the page explains for all commands."""


def page() -> str:
    """Return the page: its first part as it is, and the list of today."""
    written = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    context = click.Context(app, info_name="durable-swarm")
    return "\n".join([written + MARK, *(line for name in app.list_commands(context) for line in _entry(name, context))])


def _entry(name: str, context: click.Context) -> Iterator[str]:
    """Return the lines about a command; a group's commands follow it."""
    assert isinstance(context.command, click.Group)
    command = context.command.get_command(context, name)
    assert command is not None
    under = click.Context(command, info_name=name, parent=context)
    yield f"### {under.command_path.removeprefix('durable-swarm ')}\n"
    yield f"```text\n{' '.join([under.command_path, *command.collect_usage_pieces(under)])}\n```\n"
    yield f"{_help(command)}\n"
    options = [one for one in command.get_params(under) if isinstance(one, click.Option)]
    rows = [_row(one, under) for one in options if not EVERYWHERE.intersection(one.opts)]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows, ""])
    if any("--json" in one.opts for one in options):
        yield "It takes `--json`.\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(under):
            yield from _entry(below, under)


def _help(command: click.Command) -> str:
    """Return the help of a command as paragraphs, one line each; angle brackets would be HTML."""
    text = inspect.cleandoc(command.help or "").partition("\f")[0]
    joined = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("\b\n", "")))
    return joined.replace("<", "&lt;")


def _row(option: click.Option, context: click.Context) -> str:
    """Return the row of an option, with its default and its range in brackets."""
    names, meaning = option.get_help_record(context) or ("", "")
    return f"| `{names}` | {meaning} |".replace("<", "&lt;") if "|" not in names else _choices(names, meaning)


def _choices(names: str, meaning: str) -> str:
    """Return the row of an option with choices, whose bars a table would take for its own."""
    name, _, choices = names.partition(" ")
    words = ", ".join(f"`{word}`" for word in choices.strip("[]").split("|"))
    return f"| `{name}` | {meaning} One of {words}. |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
