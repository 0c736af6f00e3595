"""A real browser, and real programs for it: consoles, and one that tells a story."""

from __future__ import annotations

import functools
import http.client
import inspect
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn

from durable_swarm.server.guard import LOOPBACK, Access
from durable_swarm.server.web.app import Console
from tests.console.asking import TOKEN
from tests.console.shop import until
from tests.support import programs

T = TypeVar("T")

OURS = "http://127.0.0.1:"
ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Chromium:
    """A browser in a thread of its own, because its event loop keeps every other one out of its thread."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._browser = self._thread.submit(self._started, path).result()

    def _started(self, path: str) -> Any:
        from playwright.sync_api import expect, sync_playwright

        expect.set_options(timeout=60_000)
        self._playwright = sync_playwright().start()
        return self._playwright.chromium.launch(executable_path=path, args=ARGUMENTS)

    def run(self, function: Callable[[Any], None], **options: Any) -> None:
        """Call a function with a new page, which must complain of nothing, and ask nobody but consoles."""
        self._thread.submit(self._run, function, options).result()

    def _run(self, function: Callable[[Any], None], options: dict[str, Any]) -> None:
        context = self._browser.new_context(**options)
        wrong: list[str] = []
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        context.on("console", lambda told: wrong.append(told.text) if _is_fault(told) else None)
        context.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(OURS) else None)
        try:
            function(context.new_page())
        finally:
            context.close()
        assert wrong == []

    def close(self) -> None:
        """End the browser."""
        self._thread.submit(self._browser.close).result()
        self._thread.submit(self._playwright.stop).result()
        self._thread.shutdown()


def _is_fault(told: Any) -> bool:
    """Return True for an error, but that of an answer a test asked for, or of a console that was killed."""
    expected = ("Failed to load resource", "TypeError: Failed to fetch", "TypeError: network error", "htmx")
    return told.type == "error" and not told.text.startswith(expected)


def path_of_chromium() -> str:
    """Return where Chromium is; without one the test is skipped.

    On a CI machine (CI=true) it fails instead, unless DURABLE_SWARM_BROWSER=none says that none can be installed.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        no_browser = "no Chromium is installed: apt-get install chromium"
        excused = os.environ.get("DURABLE_SWARM_BROWSER") == "none"
        (pytest.skip if excused or os.environ.get("CI", "").lower() in ("", "0", "false") else pytest.fail)(no_browser)
    return str(path)


def in_browser(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a test's body run in the browser's thread, with a page of a context with these options."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def test(chromium: Chromium, **fixtures: Any) -> None:
            chromium.run(lambda page: function(page, **fixtures), **options)

        given = [one for name, one in inspect.signature(function).parameters.items() if name != "page"]
        browser = inspect.Parameter("chromium", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([browser, *given])  # type: ignore[attr-defined]
        return test

    return decorate


class Program:
    """A console in a process of its own, at a port that stays the same when it is started again."""

    def __init__(self, url: str, *options: str) -> None:
        self._url = url
        self._options = options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = ["console", "--database", self._url, "--port", str(self.port), "--user", "ana", *self._options]
        process = programs.Program(
            [sys.executable, "-m", "durable_swarm", *command], text=True, cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "DURABLE_SWARM_SERVER_TOKEN": TOKEN},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline(), process.stderr and process.stderr.read()
        return process

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.communicate()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.process = self._started()


@contextmanager
def program(url: str, *options: str) -> Iterator[Program]:
    """Have a console in a process of its own."""
    started = Program(url, *options)
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def serving(url: str, **options: Any) -> Iterator[str]:
    """Have a console in a thread of this process, and its address."""
    root = options.pop("root_path", "")
    app = Console(url, Access(token=TOKEN, hosts=LOOPBACK, name="ana"), read_only=False)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", root_path=root, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.stop()
        server.should_exit = True
        thread.join()
        listener.close()


class _Stripping(BaseHTTPRequestHandler):
    """Passes requests below `prefix` on to `port`, without the prefix."""

    prefix: str
    port: int

    def do_GET(self) -> None:
        """Forward a request, and send the answer back."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.path.startswith(self.prefix + "/"):
            self.send_error(404)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        upstream.request(self.command, self.path.removeprefix(self.prefix), body, dict(self.headers.items()))
        answer = upstream.getresponse()
        found = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(found)))
        self.end_headers()
        if answer.status != 204:
            self.wfile.write(found)
        upstream.close()

    def do_POST(self) -> None:
        """Forward a request with a form."""
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def stripping(prefix: str, upstream: str) -> Iterator[str]:
    """Have a proxy that serves an address under a path, which it strips; its own address."""
    settings = {"prefix": prefix, "port": int(upstream.rpartition(":")[2])}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Stripping,), settings)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()
        thread.join()


def apart(function: Callable[[], T]) -> T:
    """Call a function in another thread: the one of a browser has an event loop that stands still meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@contextmanager
def telling(url: str, pace: float) -> Iterator[subprocess.Popen[bytes]]:
    """Have the program that tells a story, a word each `pace` seconds."""
    program = programs.Program(
        [sys.executable, "-m", "tests.console.teller", url, str(pace)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


def sign_in(page: Any, address: str) -> None:
    """Open a console with its token."""
    until(lambda: _is_open(address))
    page.goto(f"{address}/runs?token={TOKEN}")


def _is_open(address: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(address.split(":")[2].split("/", maxsplit=1)[0])), 1).close()
    except OSError:
        return False
    return True
