"""The command itself, and the reporting of errors.

Exit codes: 0 done, 1 the run failed or an object was not found, 2 wrong use, 130 interrupted. An error is one line on
stderr with the remedy; its traceback is shown with `--debug` only. An exception of a user's program, under `run`, is
shown as Python shows it.
"""

from __future__ import annotations

import codecs
import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from durable_swarm.cli.commands import COMMANDS
from durable_swarm.cli.options import Problem, Settings, common
from durable_swarm.display import one_line
from durable_swarm.errors import ConfigurationError, DurableSwarmError, InvalidAnswer

NAME = "durable-swarm"
PLAIN = "durable_swarm.plain"
"""The name by which a stream finds `_in_ascii`."""
_SIGNS = str.maketrans({**dict(zip("—…←→≈✓✕", "-.<>~+x", strict=True)), **dict.fromkeys("▏▎▍▌▋▊▉█", "#")})


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what a terminal without Unicode shows in place of signs of ours, and of other text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIGNS)
    return text.encode("ascii", "replace").decode("ascii"), error.end


codecs.register_error(PLAIN, _in_ascii)


class _Interrupted(Exception):
    """Ctrl+C, under a name that keeps click from printing a line of its own for it."""


class _Commands(click.Group):
    """The group of all commands. A command's module is imported when it is used, which may import the engine."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"durable_swarm.cli.{COMMANDS[cmd_name].module}")
        if not gc.isenabled():  # As `main` has left it. What is imported stays, and need not be looked at again.
            gc.freeze()
            gc.enable()
        command: click.Command = getattr(module, COMMANDS[cmd_name].function or cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Click compares with commands that are imported, and these are not.
        name = args[0]
        if name not in COMMANDS and not ctx.resilient_parsing:
            import difflib

            if near := difflib.get_close_matches(name, COMMANDS, 1):
                raise click.UsageError(f"No such command {name!r}. Did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise _Interrupted from None
        except BrokenPipeError:
            # The reader has closed the pipe. Python flushes the rest at exit, and must not meet the closed pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version(NAME)
        except metadata.PackageNotFoundError:
            version = "(run from its sources)"
        click.echo(f"{NAME} {version}")
        context.exit()


@click.group(cls=_Commands, invoke_without_command=True)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@common
@click.pass_context
def app(context: click.Context) -> int | None:
    """Multi-agent programs that survive any crash: run them, and look at their runs."""
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help())
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (by default the process's) and return the exit code."""
    settings = Settings()
    if arguments is None:  # The process is the command's own: garbage can wait until its modules are imported.
        gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
    try:
        code = app.main(arguments, prog_name=NAME, standalone_mode=False, obj=settings)
    except Exception as error:
        import traceback

        from durable_swarm.credentials import without_secrets

        if settings.debug:
            shown = error.__cause__ if isinstance(error, Problem) and error.__cause__ else error
            click.echo(without_secrets("".join(traceback.format_exception(shown))), err=True, nl=False)
        code, text = _explain(error)
        click.echo(one_line(without_secrets(text)), err=True)
    return code if isinstance(code, int) else 0


def _plainly(message: str) -> str:
    """Return click's usage error as a sentence with the remedy."""
    if "unexpected extra argument" in message:
        message = f"{message.rstrip('.')}; put a text with spaces in quotes"
    message = message.replace("is not a valid integer range", "is not a whole number")
    message = message.replace("is not a valid float range", "is not a number")
    return message if message.endswith((".", "?", "!")) else f"{message}."


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    match error:
        case _Interrupted() | click.Abort():
            return 130, "Interrupted."
        case Problem(code=code):
            return code, str(error)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else NAME
            return 2, f"Error: {_plainly(error.format_message())} See: {path} --help"
        case click.ClickException():
            return error.exit_code, f"Error: {error.format_message()}"
        case ConfigurationError() | InvalidAnswer():
            # Imported now: the engine, which `--help` and a wrong option do not need.
            from durable_swarm.engine.storage.schedules import NoSchedule
            from durable_swarm.service import NoRequest, NoRuns

            return 1 if isinstance(error, NoRuns | NoRequest | NoSchedule) else 2, f"Error: {error}"
        case DurableSwarmError():
            return 1, f"Error: {error}"
        case _:
            return 1, f"Error: {type(error).__name__}: {error}. This should not happen: --debug shows where it did."
