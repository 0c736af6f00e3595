"""Python programs as real processes, forked from one that has imported Durable Swarm: a tenth of a start's work.

`Program` and `run` are `subprocess.Popen` and `subprocess.run`. A command that only a new interpreter can execute gets
one: other programs than Python, other options, other variables that an interpreter reads at its start. Tests of what a
start does, or loads, call `subprocess`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
OBEYED = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHON_VERSION", "PYTHON_SHA256"}
"""Variables with the interpreter's prefix that a fork obeys, or that say nothing to any interpreter."""


class Request(NamedTuple):
    """What the server is asked for: a program, and what it finds at its start."""

    how: str
    arguments: list[str]
    warnings: list[str]
    unbuffered: bool
    folder: str
    environment: dict[str, str]
    session: bool


def _request(
    command: Sequence[Any], environment: Mapping[str, str] | None, folder: Any, *, session: bool
) -> Request | None:
    """Return the request for a command, None if a new interpreter must execute it."""
    words = [str(word) for word in command]
    values = dict(os.environ if environment is None else environment)
    strange = [name for name in values if (name.startswith("PYTHON") and name not in OBEYED) or name == "LD_PRELOAD"]
    if sys.platform != "linux" or words[:1] != [sys.executable] or strange:
        return None
    rest, warnings, unbuffered = words[1:], [], bool(values.get("PYTHONUNBUFFERED"))
    while rest[:1] == ["-W"] or rest[:1] == ["-u"]:
        warnings += rest[1:2] if rest[0] == "-W" else []
        unbuffered |= rest[0] == "-u"
        rest = rest[2 if rest[0] == "-W" else 1 :]
    how = rest[0] if rest[:1] in (["-c"], ["-m"]) else "file"
    arguments = rest if how == "file" else rest[1:]
    if not arguments or (how == "file" and arguments[0].startswith("-")):
        return None
    return Request(how, arguments, warnings, unbuffered, str(Path(folder or ".").absolute()), values, session)


class Program(subprocess.Popen[Any]):
    """A process that is a fork where it can be one; used as `subprocess.Popen` is."""

    _status: int | None = None
    """The end of a fork's pipe that gets its wait status from the server, whose child it is."""

    def _execute_child(self, *args: Any) -> None:
        command, executable, preexec, _, passed, folder, environment, _, _, shell, *more = args
        reading, _, _, writing, _, telling, *_ = more
        own = isinstance(command, str | bytes) or executable or preexec or passed or shell
        request = None if own else _request(command, environment, folder, session=more[11])
        if request is None:
            vars(subprocess.Popen)["_execute_child"](self, *args)
            return
        streams = [ours if given == -1 else given for ours, given in ((0, reading), (1, writing), (2, telling))]
        self.pid, self._status = _fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(*more[:6])  # type: ignore[attr-defined]
        weakref.finalize(self, os.close, self._status)

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._status is None:
            return subprocess.Popen._internal_poll(self, *args, **options)  # type: ignore[attr-defined,no-any-return]
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            return subprocess.Popen._wait(self, timeout)  # type: ignore[attr-defined,no-any-return]
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._end()
        return self.returncode

    def _end(self) -> None:
        assert self._status is not None
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                told = os.read(self._status, 4)
                assert told, "the server of programs has ended"
                self.returncode = os.waitstatus_to_exitcode(*struct.unpack("i", told))


def run(
    command: Sequence[Any],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Program(command, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, out, err)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class _Server:
    """The process that forks programs, started at the first one; it ends with this process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with theirs:
            theirs.set_inheritable(True)
            # Its parent does not wait for it: it ends when the connection closes, with this process or before.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.program_server", str(theirs.fileno())],
                cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.requests = ours


_lock = threading.Lock()
_server: _Server | None = None


def _fork(request: Request, streams: list[int]) -> tuple[int, int]:
    """Have the server fork a program; return its process's id, and the file that gets its wait status."""
    global _server
    with _lock:
        if _server is None or _server.pid != os.getpid():
            _server = _Server()
        status, report = os.pipe()
        try:
            socket.send_fds(_server.requests, [json.dumps(request._asdict()).encode()], [*streams, report])
            reply = _server.requests.recv(4)
        finally:
            os.close(report)
        assert reply, "the server of programs has ended"
        return struct.unpack("i", reply)[0], status


def stop() -> None:
    """End the server, and wait for its end."""
    global _server
    with _lock:
        server, _server = _server, None
        if server is not None and server.pid == os.getpid():
            server.requests.close()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()
