"""`run`: an unchanged Swarm program, a script or a module, made durable.

Started again with the same arguments, a killed program continues where it stopped; one that had reached its end runs
everything anew (see `durable_swarm.engine.api.programs`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

import click

from durable_swarm.cli.mock import mock_server, mocking, use
from durable_swarm.cli.options import Problem, Settings, common
from durable_swarm.cli.program import Program, ProgramCommand, program_of
from durable_swarm.credentials import without_secrets
from durable_swarm.engine.api import programs
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.database import urls
from durable_swarm.errors import ConfigurationError, RunFailed, safe_text
from durable_swarm.runs import ENDED

INTERRUPTED = 130
"""The exit code of a program ended by Ctrl+C; a program may also set it itself."""

PATIENCE = 2.0
"""Seconds of waiting before a line gives the reason for the wait."""


@click.command(
    cls=ProgramCommand,
    short_help="Run a Swarm program durably.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("-m", "module", metavar="MODULE", help="Run a module in place of a script, as `python -m` does.")
@click.option("--mock", is_flag=True, help="Ask an offline model instead of a provider: no key is needed.")
@mocking
@click.argument("words", metavar="SCRIPT [ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
@common
@click.pass_obj
def run(
    settings: Settings,
    module: str | None,
    words: tuple[str, ...],
    mock: bool,
    seed: int,
    latency: float,
    fail: tuple[int, float],
) -> int:
    """Run an unchanged Swarm program durably: `import swarm` imports the durable one.

    Kill it at any moment and start it again the same way: it continues where it stopped, and finished steps are not
    executed again. Options come before SCRIPT; arguments after it belong to the program. `-m pytest ARGUMENTS` runs the
    tests of a Swarm program.

    With --mock, a client that the program makes without a base_url of its own asks an offline model, which calls the
    program's tools with invented arguments.
    """
    program = program_of(module, words)
    with contextlib.ExitStack() as stack:
        if mock:
            use(stack.enter_context(mock_server(seed=seed, latency=latency, fail=fail)))
        return _run(settings, program)


def _run(settings: Settings, program: Program) -> int:
    _prepare(settings, program)
    session = programs.ScriptRun(
        program.name if program.path is None else program.path.stem,
        program.place,
        program.arguments,
        lambda: _say(f"Continuing where {program.name} was interrupted."),
    )
    programs.begin(session)
    try:
        code = _execute(settings, program)
    except KeyboardInterrupt:
        raise Problem("Interrupted. The same command continues where this stopped.", INTERRUPTED) from None
    except Exception as error:
        raise _problem(settings, program, error, _end(session, failed=True)) from error
    finally:
        programs.begin(None)
    if code != INTERRUPTED:
        _end(session, failed=code != 0)
    return code


def _execute(settings: Settings, program: Program) -> int:
    code = 0
    try:
        program.execute()
    except SystemExit as end:
        code = _code(end)
    if code == 0:
        _finish(settings)
    return code


def _prepare(settings: Settings, program: Program) -> None:
    """Set the process up, with the durable Swarm and the database in it."""
    from durable_swarm import compat

    # Absolute, so that a program that changes its directory keeps its database.
    os.environ[urls.VARIABLE] = urls.choose(settings.database).render_as_string(hide_password=False)
    compat.install(durable=True)
    program.prepare()


def _code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    _say(str(end.code))
    return 1


def _end(session: programs.ScriptRun, *, failed: bool) -> str | None:
    """Note the program's end. An error while doing so must not hide how it ended."""
    try:
        return session.end(failed=failed)
    except Exception as error:
        _say(f"Warning: the end of the program could not be noted, so its next start repeats this one: {error}")
        return None


def _problem(settings: Settings, program: Program, error: Exception, run_id: str | None) -> Problem:
    """Return the message for an exception that ended the program; `run_id` is the run that failed, if one did."""
    if isinstance(error, ConfigurationError):
        return Problem(f"Error: {error}", 2)
    trace = _own_part(error, program.path)
    error.__traceback__ = trace or error.__traceback__
    line = f" (line {trace.tb_lineno})" if trace else ""
    reason = without_secrets(safe_text(error))
    text = f"Error: {program.name}{line}: {type(error).__name__}: {reason}".rstrip(": ").rstrip(".")
    if isinstance(error, RunFailed) and error.run_id and run_id is None:
        return Problem(f"{text}. Fix it, then `{settings.command('resume', error.run_id)}`.")
    if run_id is None:
        return Problem(f"{text}. --debug shows the traceback.")
    resume = settings.command("resume", run_id)
    return Problem(
        f"{text}. See `{settings.command('show', run_id)}`. Once the cause is fixed, `{resume}` and this command "
        "again continue from the failed step. This command alone starts everything anew; after that, only the failed "
        "run itself can be resumed."
    )


def _finish(settings: Settings) -> None:
    """Wait for the runs of earlier starts that this one has taken over, and report those that did not finish."""
    for run in programs.taken_over():
        trouble, shown = _trouble(run), False
        while trouble is None and run.status not in ENDED:
            if not shown:
                _say(f"Waiting for run {run.id} of an earlier start; Ctrl+C leaves it for the next.")
                shown = True
            trouble = _trouble(run)
        if trouble is not None:
            _say(f"Run {run.id} of an earlier start is not done: {trouble}. See `{settings.command('show', run.id)}`.")


def _trouble(run: Run) -> str | None:
    """Wait for a run for a while, and return why it cannot end, or how it failed, or None."""
    try:
        run.result(timeout=PATIENCE)
    except TimeoutError as error:
        return str(error) if run.status in ENDED else run.waits_for
    except RunFailed as error:
        return f"{error.error_type}: {error.error_message}"
    except Exception as error:
        return f"{type(error).__name__}: {without_secrets(safe_text(error))}"
    return None


def _own_part(error: Exception, script: Path | None) -> TracebackType | None:
    """Return the traceback from where the script begins; None for a module."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(script):
        trace = trace.tb_next
    return trace


def _say(text: str) -> None:
    click.echo(text, err=True)
