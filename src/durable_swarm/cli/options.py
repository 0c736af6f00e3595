"""The options common to all commands: `--database`, `--debug`, and the object that keeps both."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

STARTS = "That program does whatever else it does when it starts, too."
"""A warning for commands that leave a run to a program."""


@dataclass
class Settings:
    """The options of all commands, given before or after the command's name."""

    database: str | None = None
    debug: bool = False

    def command(self, *words: str) -> str:
        """Return a command line to type next, for the same database."""
        from durable_swarm.engine.database.urls import (
            without_password,  # With SQLAlchemy, which `--help` does not need.
        )

        where = ["--database", without_password(self.database)] if self.database else []
        return shlex.join(["durable-swarm", *words, *where])


class Problem(Exception):
    """A command could not be carried out; the message gives the remedy, `code` is the exit code.

    The cause, if there is one, is shown by `--debug`.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    if value and option.name:
        setattr(context.ensure_object(Settings), option.name, value)


_database = click.option(
    "--database",
    metavar="URL",
    expose_value=False,
    callback=_keep,
    help="Database of the runs. Default: $DURABLE_SWARM_DATABASE_URL, else sqlite:///durable_swarm.sqlite.",
)

debuggable = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_keep,
    is_eager=True,
    help="Show the traceback of an error.",
)


def common(function: F) -> F:
    """Add the options of every command about runs to a command."""
    return _database(debuggable(function))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def user_name() -> str | None:
    """Return the login name of the current user, or None if there is none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


by_person = click.option(
    "--by", metavar="NAME", default=user_name, show_default="your login name", help="Who does it; it is recorded."
)
