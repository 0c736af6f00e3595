"""The program that `run` executes: a script, or a module as `python -m` executes it."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click


@dataclass(frozen=True)
class Program:
    """A script, or a module (`path` is None), and its arguments."""

    name: str
    path: Path | None
    arguments: tuple[str, ...]

    @property
    def place(self) -> str:
        """The place of the program: a program in another place is another program."""
        return f"-m {self.name} {Path.cwd()}" if self.path is None else str(self.path.resolve())

    def prepare(self) -> None:
        """Set the process up like `python SCRIPT ARGUMENTS`, or `python -m MODULE ARGUMENTS`."""
        sys.argv = [self.name if self.path is None else str(self.path), *self.arguments]
        sys.path.insert(0, str(Path.cwd() if self.path is None else self.path.resolve().parent))
        if self.path is None and importlib.util.find_spec(self.name.partition(".")[0]) is None:
            raise click.UsageError(f"There is no module {self.name!r} here; run this where it can be imported.")

    def execute(self) -> None:
        """Execute the program."""
        if self.path is None:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(self.path), run_name="__main__")


def program_of(module: str | None, words: tuple[str, ...]) -> Program:
    """Return the module with these arguments, or the script that the first word names. Raises click's errors."""
    if module is not None:
        return Program(module, None, words)
    if not words:
        raise click.UsageError("Missing argument 'SCRIPT'.")
    path: Path = click.Path(exists=True, dir_okay=False, path_type=Path).convert(words[0], None, None)
    return Program(path.name, path, words[1:])


class ProgramCommand(click.Command):
    """Ends the options after `-m MODULE`, as Python does: what follows belongs to the program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = next((number for number, word in enumerate(args) if word == "-m"), None)
        if at is not None and len(args) > at + 1 and not self._names_script(args[:at]):
            args = [*args[: at + 2], "--", *args[at + 2 :]]
        return super().parse_args(ctx, args)

    def _names_script(self, words: list[str]) -> bool:
        """Return True if there is a word among these that is neither an option nor the value of one."""
        options = [option for option in self.params if isinstance(option, click.Option) and not option.is_flag]
        with_value = {name for option in options for name in option.opts}
        return any(not word.startswith("-") and before not in with_value for before, word in pairwise(["", *words]))
