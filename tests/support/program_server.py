"""Serves programs: each is a fork of this process, which has imported what programs of Durable Swarm import.

A request is one message: a JSON object with `how`, `arguments`, `folder`, `environment`, `warnings`, `unbuffered` and
`session`, with the files that become 0, 1 and 2, and a pipe that takes the wait status. The reply is the process's id.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 1 << 20
"""Maximum bytes of a request."""

PRELOAD = ("tests.support.warm", "durable_swarm.cli.script", "durable_swarm.cli.worker")
"""What this process imports first. `warm` executes runs, because much is loaded at first use."""


def serve(requests: socket.socket) -> None:
    """Start programs until the other side closes. It returns in the server, and in no program."""
    waking, alarm = os.pipe()
    for end in (waking, alarm):
        os.set_blocking(end, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    reports: dict[int, int] = {}

    while True:
        ready, _, _ = select.select([requests, waking], [], [])
        if waking in ready:
            os.read(waking, 4096)
            _report_ends(reports)
        if requests in ready:
            message, files, _, _ = socket.recv_fds(requests, LARGEST, 4)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                for unneeded in (requests.detach(), waking, alarm, files[3], *reports.values()):
                    os.close(unneeded)
                signal.set_wakeup_fd(-1)
                _become(json.loads(message), files[:3])
            for file in files[:3]:
                os.close(file)
            reports[pid] = files[3]
            requests.send(struct.pack("i", pid))


def _report_ends(reports: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            report = reports.pop(ended[0])
            with contextlib.suppress(BrokenPipeError):
                os.write(report, struct.pack("i", ended[1]))
            os.close(report)


class Program(Exception):
    """Carries a program out of `serve`, so that it is executed with nothing of the server on its stack."""


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Make this process what a new interpreter would be."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    for file in files:
        if file > 2:
            os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    whole = not request["unbuffered"]
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "w", whole=whole)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w", whole=whole, errors="backslashreplace")  # type: ignore[misc]
    for given in request["warnings"]:
        action, _, name = given.partition("::")
        warnings.filterwarnings(action, category=getattr(importlib.import_module("builtins"), name or "Warning"))
    # A test writes its program anew within a second, and bytecode is told from its source by whole seconds.
    sys.dont_write_bytecode = True
    raise Program(request["how"], request["arguments"])


def _text(number: int, mode: str, *, whole: bool = True, errors: str = "strict") -> io.TextIOWrapper:
    """Open a standard stream as the interpreter does."""
    binary = open(number, f"{mode}b", -1 if whole or mode == "r" else 0, closefd=False)  # noqa: SIM115
    lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(
        binary, encoding="utf-8", errors=errors, line_buffering=lines, write_through=not whole and mode == "w"
    )


def _execute(how: str, arguments: list[str]) -> None:
    """Execute a program as the interpreter does: `-c` and its text, `-m` and a module, or a file."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    vars(main)["__builtins__"] = __builtins__
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if how == "-m":
        sys.argv = arguments
        sys.path[:0] = [str(Path.cwd()), *paths]
        run_module: Any = vars(runpy)["_run_module_as_main"]
        run_module(arguments[0])
        return
    if how == "-c":
        sys.argv, text, name = ["-c", *arguments[1:]], arguments[0], "<string>"
        sys.path[:0] = ["", *paths]
    else:
        sys.argv, text, name = arguments, Path(arguments[0]).read_text(encoding="utf-8"), arguments[0]
        sys.path[:0] = [str(Path(arguments[0]).resolve().parent), *paths]
        main.__file__ = name
    exec(compile(text, name, "exec", dont_inherit=True), vars(main))


def _show_own_frames(how: str, arguments: list[str]) -> None:
    """Execute a program, and show of an error only the frames that a new interpreter would show."""
    try:
        _execute(how, arguments)
    except SystemExit:
        raise
    except BaseException as error:
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        shown = sys.excepthook

        def show(kind: type[BaseException], told: BaseException, _: types.TracebackType | None) -> None:
            shown(kind, told.with_traceback(traceback), traceback)

        sys.excepthook = show
        raise


if __name__ == "__main__":
    own = socket.socket(fileno=int(sys.argv[1]))
    before = list(sys.path)
    for module in PRELOAD:
        importlib.import_module(module)
    sys.path[:] = before[1:]  # Without the folder of `-m`.
    gc.collect()
    gc.freeze()  # A fork looks for garbage at its end, and would copy all memory of this process to do so.
    program: tuple[str, list[str]] | None = None
    try:
        serve(own)
    except Program as found:
        program = found.args
    if program is not None:
        _show_own_frames(*program)
