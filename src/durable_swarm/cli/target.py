"""MODULE:SWARM on the command line: the user's program, imported for its agents and its `DurableSwarm`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from durable_swarm.cli.options import Problem, Settings
from durable_swarm.engine import DurableSwarm, database


def load(settings: Settings, target: str) -> DurableSwarm:
    """Import the module, as from the current directory, and give its swarm.

    Raises `Problem`, and click's `UsageError`.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"{target!r} names no swarm; give MODULE:SWARM, such as app:swarm.")
    if settings.database is not None:
        os.environ[database.VARIABLE] = settings.database
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        text = f"There is no module {module_name!r} here; start the worker where it can be imported."
        raise Problem(text, 2) from error
    swarm = getattr(module, name, None)
    if not isinstance(swarm, DurableSwarm):
        swarms = [key for key, value in vars(module).items() if isinstance(value, DurableSwarm)]
        there = f"it has {', '.join(swarms)}" if swarms else "it has none"
        raise Problem(f"{target!r} is no DurableSwarm; {there}.", 2)
    if settings.database is not None and swarm.database not in (None, settings.database):
        raise Problem(f"{target} names its database itself; take --database away, or database= out of the code.", 2)
    return swarm
