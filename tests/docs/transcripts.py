"""Plays a page: writes the files that it shows, types its commands, and compares what they print.

- A `python`, `yaml`, … block with `title="FILE"` is written to that file when its turn comes.
- In a `console` block a line `$ COMMAND` is typed; the lines below it are what it prints. `…` stands for any text in a
  line, `...` on a line of its own for any lines. Times, their bars, dates and ids made by chance may differ.
- Where `Killed` or `^C` ends the output, the command is killed, or interrupted, once the lines before have come.
- A command with `&` at its end runs until the page ends. `export NAME=VALUE` holds for the commands after it.
- `sh` blocks are commands for the reader alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.pages import Block, blocks_of
from tests.support import programs

TIMEOUT = 180.0
ENDS = {"Killed": signal.SIGKILL, "^C": signal.SIGINT}

VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?(\+00:00)?)?"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s|min \d+ s)(?!\w)"), "<duration>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12}\b"), "<version>"),
    (re.compile(r"\b(demo-\w+-|repl-\w+-)[0-9a-z]+"), r"\1<id>"),
    (re.compile(r" *[▏▎▍▌▋▊▉█]+ *"), "  "),
    (re.compile(r" {2,}"), "  "),
]


class Command(NamedTuple):
    """A command of a page, what the page says it prints, and its line in the page."""

    text: str
    expected: list[str]
    line: int


def commands_of(block: Block) -> Iterator[Command]:
    """Return the commands of a console block."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        if line.startswith("$ "):
            found.append(Command(line[2:], [], number))
        else:
            assert found, f"line {number}: a console block begins with a command"
            found[-1].expected.append(line)
    yield from found


def plain(line: str) -> str:
    """Return a line without what differs from run to run."""
    for pattern, put in VARYING:
        line = pattern.sub(put, line)
    return line.rstrip()


def pattern_of(expected: list[str]) -> re.Pattern[str]:
    """Return the pattern of an output."""
    made = []
    for line in expected:
        if line.strip() == "...":
            made.append(r"(?:.*\n)*?")
        else:
            made.append(re.escape(plain(line)).replace("…", ".*") + r"\n")
    return re.compile("".join(made))


PLAIN = re.compile(r"[\w ./:,=@%+'\"?!-]*")
"""A command that a shell only takes apart."""
BIN = Path(sys.executable).parent


def _in_words(text: str) -> list[str]:
    """Return a command in words: as Python executes a program of this package, otherwise through a shell."""
    first, *rest = shlex.split(text) if PLAIN.fullmatch(text) else [""]
    if first in ("python", "python3"):
        return [sys.executable, *rest]
    return [sys.executable, str(BIN / first), *rest] if first == "durable-swarm" else ["bash", "-c", text]


class Typed:
    """A command that was typed: its process, and the file of its output."""

    def __init__(self, command: Command, folder: Path, environment: dict[str, str]) -> None:
        self.command = command
        self._output = folder / f".output-{command.line}"
        with self._output.open("w") as output:
            self._process = programs.Program(
                _in_words(command.text.removesuffix("&")),
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        """What it has printed so far, in whole lines, without what varies."""
        lines = self._output.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(f"{plain(line)}\n" for line in lines if line.endswith("\n"))

    def wait_for(self, expected: list[str]) -> None:
        """Wait until it has printed these lines."""
        end = time.monotonic() + TIMEOUT
        while not pattern_of(expected).match(self.printed):
            assert time.monotonic() < end, self._differs()
            assert self._process.poll() is None, self._differs()
            time.sleep(0.02)

    def finish(self) -> None:
        """Wait for its end, and compare what it printed."""
        self._process.wait(timeout=TIMEOUT)
        assert pattern_of(self.command.expected).fullmatch(self.printed), self._differs()

    def end(self, sign: signal.Signals) -> None:
        """Send a signal to it and to what it has started, and wait for its end."""
        os.killpg(self._process.pid, sign)
        self._process.wait(timeout=TIMEOUT)

    def _differs(self) -> str:
        expected = "\n".join(self.command.expected)
        return f"line {self.command.line}: $ {self.command.text}\n{self.printed}-- the page says --\n{expected}\n"


def play(page: str, folder: Path, environment: dict[str, str]) -> None:
    """Write the files and type the commands of a page in a folder, in order."""
    path = f"{BIN}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **environment}
    with contextlib.ExitStack() as stack:
        for block in blocks_of(page):
            if block.title is not None:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.kind == "console":
                for command in commands_of(block):
                    _type(command, folder, environment, stack)


def _type(command: Command, folder: Path, environment: dict[str, str], stack: contextlib.ExitStack) -> None:
    words = shlex.split(command.text)
    if words[0] == "export":
        name = words[1].partition("=")[0]
        script = f'{command.text} && printf %s "${name}"'
        typed = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
        environment[name] = typed.stdout.decode()
        return
    typed = Typed(command, folder, environment)
    ended_by = ENDS.get(command.expected[-1]) if command.expected else None
    if command.text.endswith("&"):
        stack.callback(typed.end, signal.SIGKILL)
        typed.wait_for(command.expected)
    elif ended_by is not None:
        typed.wait_for(command.expected[:-1])
        typed.end(ended_by)
    else:
        typed.finish()
