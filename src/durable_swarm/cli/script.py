"""`run`: an unchanged Swarm program, made durable.

Started again with the same arguments, a program that was killed goes on where it stopped; one that had come to its end
does everything afresh (`durable_swarm.engine.sessions` says how). An exception of the program's own is shown as Python
shows it; an error of this package is one line.
"""

from __future__ import annotations

import itertools
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import click
import dbos

import durable_swarm
from durable_swarm.cli.options import Problem, Settings, common
from durable_swarm.engine import database, sessions
from durable_swarm.errors import ConfigurationError, DurableSwarmError, RunFailed

INTERRUPTED = 130
"""The exit code of a program that Ctrl+C has ended; also one that a program may give itself."""

_HIDDEN = tuple(f"{Path(package.__file__).parent}{os.sep}" for package in (durable_swarm, dbos))
"""Where the code lies that stands between a program and its own tools."""


@click.command(short_help="Run a Swarm program durably.", context_settings={"allow_interspersed_args": False})
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@common
@click.pass_obj
def run(settings: Settings, script: Path, arguments: tuple[str, ...]) -> int:
    """Run an unchanged Swarm program durably: `import swarm` gives the durable one.

    Kill it at any moment and start it again the same way: it goes on where it stopped, and what is finished is not done
    again. Options come before SCRIPT; what follows it belongs to the program.
    """
    _prepare(settings, script, arguments)
    program = sessions.Program(script, arguments, lambda: _say(f"Going on where {script.name} was interrupted."))
    sessions.begin(program)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except KeyboardInterrupt:
        raise Problem("Interrupted. The same command goes on where this stopped.", INTERRUPTED) from None
    except SystemExit as end:
        code = _code(end)
        if code != INTERRUPTED:
            _end(program, failed=code != 0)
        return code
    except DurableSwarmError as error:
        raise _problem(settings, script, error, _end(program, failed=True)) from error
    except Exception as error:
        _fail(settings, script, error, _end(program, failed=True))
        return 1
    finally:
        sessions.begin(None)
    _end(program, failed=False)
    return 0


def _prepare(settings: Settings, script: Path, arguments: tuple[str, ...]) -> None:
    """Make the process what `python SCRIPT ARGUMENTS` would be, with the durable Swarm and the database in it."""
    from durable_swarm import compat

    # Absolute, so that a program that changes its directory keeps its database.
    os.environ[database.VARIABLE] = database.choose(settings.database).render_as_string(hide_password=False)
    compat.install(durable=True)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))


def _code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    _say(str(end.code))
    return 1


def _end(program: sessions.Program, *, failed: bool) -> str | None:
    """Note the program's end. Whatever hinders that must not hide how it ended."""
    try:
        return program.end(failed=failed)
    except Exception as error:
        _say(f"Warning: the end of the program could not be noted, so its next start repeats this one: {error}")
        return None


def _problem(settings: Settings, script: Path, error: DurableSwarmError, run_id: str | None) -> Problem:
    """Give what to tell of an error of this package; `run_id` is the run that failed, if this start began it."""
    if isinstance(error, ConfigurationError):
        return Problem(f"Error: {error}", 2)
    trace = _own_part(error, script)
    line = f" (line {trace.tb_lineno})" if trace else ""
    text = f"Error: {script.name}{line}: {type(error).__name__}: {error}".rstrip(": ").rstrip(".")
    if run_id is not None:
        return Problem(f"{text}. {_remedy(settings, run_id)}")
    if isinstance(error, RunFailed) and error.run_id:
        return Problem(f"{text}. Mend it, then `{settings.command('resume', error.run_id)}`.")
    return Problem(f"{text}. --debug shows the traceback.")


def _remedy(settings: Settings, run_id: str) -> str:
    show, resume = settings.command("show", run_id), settings.command("resume", run_id)
    return (
        f"See `{show}`. Mend it, then `{resume}`: this command then goes on from the failed step. "
        "Without `resume` it starts afresh."
    )


def _fail(settings: Settings, script: Path, error: Exception, run_id: str | None) -> None:
    """Show an exception of the program as Python would; without the code between it and its tools, but for --debug."""
    trace = error.__traceback__ if settings.debug else _without_ours(_own_part(error, script))
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    if run_id is not None:
        _say(_remedy(settings, run_id))


def _own_part(error: Exception, script: Path) -> TracebackType | None:
    """Give the traceback from where the program begins."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(script):
        trace = trace.tb_next
    return trace


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Take our code out of a traceback, unless the exception comes from there."""
    parts = list(_parts(trace))
    if not parts or _is_ours(parts[-1]):
        return trace
    kept = [part for part in parts if not _is_ours(part)]
    for part, following in itertools.pairwise([*kept, None]):
        if part is not None:
            part.tb_next = following
    return kept[0]


def _parts(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_ours(part: TracebackType) -> bool:
    return part.tb_frame.f_code.co_filename.startswith(_HIDDEN)


def _say(text: str) -> None:
    click.echo(text, err=True)
