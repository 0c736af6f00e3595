"""`durable-swarm console`: its address, what it refuses, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.console.browsing import telling
from tests.console.shop import until
from tests.console.teller import RUN
from tests.support import programs
from tests.support.patience import PATIENCE

COMMAND = [sys.executable, "-m", "durable_swarm", "console", "--no-browser", "--port", "0"]
TOKEN = {"DURABLE_SWARM_SERVER_TOKEN": "secret"}


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Have a console, and the address that it prints; it is killed after that."""
    env = {**os.environ, **environment}
    program = programs.Program([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line, program.stderr and program.stderr.read()
        yield program, line.split()[-1]
    finally:
        program.kill()
        program.communicate()


def refused(*options: str, **environment: str) -> tuple[int, str]:
    done = programs.run(
        [*COMMAND, *options], check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stderr


def test_the_printed_address_signs_in(tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> None:
    """The address that is printed opens the console; without its token the same address does not."""
    with serving("--database", fresh_sqlite(tmp_path / "runs.sqlite")) as (_, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/runs\?token=[\w-]{20,}", url)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        page = opener.open(url)
        assert page.url == url.partition("?")[0]
        assert "There are no runs yet" in page.read().decode()
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(page.url)
        assert error.value.code == 401
        error.value.close()
        page.close()


def test_it_ends_with_streams_open(tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> None:
    """SIGTERM ends the console while browsers read streams of a run: no traceback, no word about it."""
    url = fresh_sqlite(tmp_path / "runs.sqlite")
    with serving("--database", url, **TOKEN) as (program, address), telling(url, 0.5):
        port = int(address.split(":")[2].split("/")[0])
        readers = [until(lambda: _stream(port)) for _ in range(3)]
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate(timeout=PATIENCE)
        assert (program.returncode, said) == (-signal.SIGTERM, "")
        for reader in readers:
            reader.close()


def _stream(port: int) -> socket.socket | None:
    """Return a connection on which the stream of a run has begun, or None."""
    reader = socket.create_connection(("127.0.0.1", port))
    path = f"/runs/{RUN}/events"
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n".encode())
    if reader.recv(100).startswith(b"HTTP/1.1 200"):
        return reader
    reader.close()
    return None


def test_another_address_needs_a_token_of_ones_own() -> None:
    """Where other machines reach it, the console makes up no token, because that would be printed into a log."""
    code, said = refused("--host", "0.0.0.0")
    assert code == 2
    assert "DURABLE_SWARM_SERVER_TOKEN" in said


def test_a_port_in_use() -> None:
    """A port that another program has is said in one line, with the option that helps."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, said = refused("--port", str(other.getsockname()[1]))
    assert code == 2
    assert "--port" in said
    assert len(said.splitlines()) == 1


def test_without_the_extra(tmp_path: Path) -> None:
    """Without the packages of the extra the command says how to install it."""
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('no starlette', name='starlette')\n")
    code, said = refused(PYTHONPATH=str(tmp_path))
    assert code == 2
    assert "pip install 'durable-swarm[server]'" in said


def test_a_header_needs_its_proxy() -> None:
    """A header that names who decides is believed from a proxy that is named, too."""
    code, said = refused("--user-header", "x-user")
    assert code == 2
    assert "--proxy" in said
