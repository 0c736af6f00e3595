"""MODULE:SWARM on the command line: the user's program, imported for its agents and its `DurableSwarm`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from durable_swarm.cli.options import Problem, Settings
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.database import urls
from durable_swarm.errors import DurableSwarmError


def load(settings: Settings, target: str) -> DurableSwarm:
    """Import the module, as from the current directory, and return its swarm.

    Raises `Problem`, and click's `UsageError`.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"{target!r} names no swarm; give MODULE:SWARM, such as app:swarm.")
    if module_name.endswith(".py") or "/" in module_name:
        meant = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise click.UsageError(f"{module_name!r} is a file; give its module, as in {meant}:{name}.")
    if settings.database is not None:
        os.environ[urls.VARIABLE] = settings.database
    module = _imported(module_name)
    swarm = getattr(module, name, None)
    if not isinstance(swarm, DurableSwarm):
        swarms = [key for key, value in vars(module).items() if isinstance(value, DurableSwarm)]
        there = f"it has {', '.join(swarms)}" if swarms else "it has none"
        raise Problem(f"Error: {target!r} is not a DurableSwarm; {there}.", 2)
    if settings.database is not None and swarm.database not in (None, settings.database):
        raise Problem(
            f"Error: {target} names its database itself; take --database away, or database= out of the code.", 2
        )
    return swarm


def _imported(name: str) -> object:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except DurableSwarmError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            text = f"there is no module {name!r} here; run this where it can be imported."
        else:
            text = f"the module {name!r} cannot be imported: {type(error).__name__}: {error}. --debug shows where."
        raise Problem(f"Error: {text}", 2) from error
