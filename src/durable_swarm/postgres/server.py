"""One server: chooses its runner, starts it, waits until it answers, reports its state, stops it."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from durable_swarm.postgres import docker
from durable_swarm.postgres.binaries import START_SECONDS, Local
from durable_swarm.postgres.data_folder import (
    DATABASE,
    HOST,
    USER,
    DataFolder,
    Keeper,
    NoPostgres,
    Notes,
    free_port,
    why_not,
)

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("durable_swarm")

Condition = Literal["running", "not answering", "stopped", "never started"]


@dataclass(frozen=True)
class State:
    """The state of a server: running or not, its runner, address and version. It does not hold the password."""

    state: Condition
    by: Keeper | None
    host: str
    port: int | None
    database: str
    user: str
    version: str | None
    pid: int | None
    container: str | None
    data: str


class Server:
    """The server of a folder; `settings` are PostgreSQL's, for servers that `binaries` run."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, use_docker: bool = True) -> None:
        self.place = DataFolder(folder)
        self._local = Local(self.place, settings or {})
        self._docker = docker.Docker(self.place)
        self._use_docker = use_docker

    def start(self, port: int | None = None) -> str:
        """Start the server if it does not run, wait until it answers, and return its URL.

        Raises `NoPostgres` if there is no PostgreSQL, or it does not start; `ConfigurationError` if the folder holds
        other things.
        """
        with _told():
            self.place.prepare()
            with self.place.locked():
                url = self._start(port)
                self._create_database(url)
                return url

    def stop(self) -> bool:
        """Stop the server and wait until it has ended. Return False if it did not run."""
        with _told():
            if not (notes := self.place.notes):
                return False
            with self.place.locked():
                keeper = self._keeper(notes.by)
                if running := keeper.alive():
                    keeper.stop()
                return running

    def url(self) -> str:
        """Return the URL. Raises `NoPostgres` if the server does not run."""
        state = self.state()
        if state.state == "running" and state.port is not None:
            return self.place.url(state.port)
        again = f"durable-swarm postgres start --data {shlex.quote(str(self.place.folder))}"
        raise NoPostgres(f"the server does not run ({state.state}); start it: {again}")

    def state(self) -> State:
        """Return the state of the server."""
        with _told():
            if not (notes := self.place.notes):
                return self._state("never started", None)
            if not self._keeper(notes.by).alive():
                return self._state("stopped", notes)
            try:
                return self._state("running", notes, _version(self.place.url(notes.port)))
            except NoPostgres:
                return self._state("not answering", notes)

    def _state(self, condition: Condition, notes: Notes | None, version: str | None = None) -> State:
        by, port = (notes.by, notes.port) if notes else (None, None)
        name = self._docker.name if by == "docker" else None
        where = str(self.place.folder if name is None else f"volume {name}")
        return State(condition, by, HOST, port, DATABASE, USER, version, self._local.pid(), name, where)

    def _keeper(self, by: Keeper) -> Local | docker.Docker:
        return self._local if by == "binaries" else self._docker

    def _start(self, port: int | None) -> str:
        notes = self.place.notes
        keeper = self._keeper(by := self._who(notes))
        if notes is None or not keeper.alive():
            notes = self._launch(keeper, notes, Notes(by, port or self._usual_port(notes)))
        elif port not in (None, notes.port):
            raise NoPostgres(f"the server runs on port {notes.port} already; stop it first to move it")
        url = self.place.url(notes.port)
        self._wait(url, keeper)
        return url

    def _who(self, notes: Notes | None) -> Keeper:
        """Return the runner of the server: the one of the last start, because it has the data."""
        if notes is None:
            return "docker" if self._use_docker and docker.works() else "binaries"
        if notes.by == "docker" and not self._use_docker:
            raise NoPostgres(f"the data of {self.place.folder} is Docker's; name another folder with --data")
        return notes.by

    def _launch(self, keeper: Local | docker.Docker, before: Notes | None, notes: Notes) -> Notes:
        # Noted first, because a start that is killed or given up half way leaves a server that the next start must
        # find.
        self.place.note(notes)
        try:
            keeper.launch(notes.port)
        except Exception:
            if not keeper.alive():
                self.place.note(before)
            raise
        return notes

    def _usual_port(self, notes: Notes | None) -> int:
        """Return the port of the last start, or a free one if another program now uses that port."""
        if notes is None:
            return free_port()
        deadline = time.monotonic() + 1  # A killed server may hold its port a moment longer.
        while why_not(notes.port):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return notes.port
        fresh = free_port()
        log.warning("another program listens on port %s, so the server moves to port %s", notes.port, fresh)
        return fresh

    def _wait(self, url: str, keeper: Local | docker.Docker) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                _version(url)
                return
            except NoPostgres as error:
                if "password" in str(error) or not keeper.alive() or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _create_database(self, url: str) -> None:
        """Create the database that the URL names, so that other tools can use the URL at once."""
        with _connected(url) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute(f"CREATE DATABASE {DATABASE}")


def _version(url: str) -> str:
    """Ask the server for its version. Raises `NoPostgres` if it does not answer."""
    with _connected(url) as connection:
        return str(connection.info.parameter_status("server_version")).split()[0]


@contextlib.contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection]:
    """Connect to the database that every server has, ignoring the environment's TLS settings for other servers."""
    import psycopg

    always = f"{url.removesuffix(DATABASE)}postgres"
    try:
        with psycopg.connect(always, autocommit=True, connect_timeout=3, sslmode="disable") as connection:
            yield connection
    except psycopg.Error as error:
        raise NoPostgres(f"PostgreSQL does not answer: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Translate errors of the operating system into errors that explain their meaning here."""
    try:
        yield
    except OSError as error:
        raise NoPostgres(
            f"{error.filename or 'the server'}: {error.strerror}; name another folder with --data"
        ) from error
