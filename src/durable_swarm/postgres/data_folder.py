"""The folder of a server: its data, its password, its port, and the user that owns all of it."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import secrets
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from durable_swarm.errors import ConfigurationError, DurableSwarmError

HOST = "127.0.0.1"
USER = "postgres"
DATABASE = "durable_swarm"

_FRESH = "server.json.new"
"""The name of the notes file while it is written."""

_UNFIT = '$"`\\\n'
"""Characters that pg_ctl does not quote when it starts the server through a shell."""

Keeper = Literal["docker", "binaries"]


class NoPostgres(DurableSwarmError):
    """The server cannot be started, reached or stopped; the message gives the remedy."""


@dataclass(frozen=True)
class Notes:
    """The notes kept about a server between starts, beside its password: its runner and its port."""

    by: Keeper
    port: int


def default_folder() -> Path:
    """Return the default folder of a user's server.

    Root's is outside its home, which the server's user may not enter.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/durable-swarm/postgres")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "durable-swarm" / "postgres"


class DataFolder:
    """A server's folder and its contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        if unfit := set(_UNFIT) & set(str(self.folder)):
            signs = " ".join(sorted(map(repr, unfit)))
            raise ConfigurationError(f"PostgreSQL cannot use a folder with {signs} in its name; name another (--data)")
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.password_file = self.folder / "password"
        self._notes = self.folder / "server.json"

    @property
    def notes(self) -> Notes | None:
        """The notes of the last start; None if there was none."""
        try:
            found = json.loads(self.read(self._notes.name))
            return Notes(found["by"], int(found["port"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise NoPostgres(f"{self._notes} is damaged; it should be like {_EXAMPLE}") from None

    def note(self, notes: Notes | None) -> None:
        """Keep the notes for the next start."""
        if notes is None:
            self._notes.unlink()
            return
        self.write(json.dumps(asdict(notes)) + "\n", _FRESH)
        self._notes.with_name(_FRESH).replace(self._notes)

    def url(self, port: int) -> str:
        """Return the URL of the server's database for programs, with the password."""
        return f"postgresql://{USER}:{quote(self.password(), safe='')}@{HOST}:{port}/{DATABASE}"

    def password(self) -> str:
        """Return the password of the server's superuser."""
        with contextlib.suppress(FileNotFoundError):
            if found := self.read(self.password_file.name).strip():
                return found
        raise NoPostgres(
            f"the password in {self.password_file} is gone, without which nobody gets in; put it back, or start anew "
            "in another folder (--data)"
        )

    def make_password(self) -> None:
        """Create a new password, readable by the server's user only."""
        self.password_file.unlink(missing_ok=True)
        with os.fdopen(self.open(self.password_file.name, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(secrets.token_urlsafe(24))
            if self.identity:
                os.fchown(file.fileno(), self.identity["user"], self.identity["group"])

    def prepare(self) -> None:
        """Create the folder, or use an empty one, for the server's user only.

        Raises if the folder holds other things.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {path.name for path in self.folder.iterdir()}
        if names & {self._notes.name, self.password_file.name}:
            return
        if names - {"lock", _FRESH}:
            raise ConfigurationError(f"the folder {self.folder} holds other things; name a new one with --data")
        self.folder.chmod(0o700)
        if os.geteuid() == self.folder.stat().st_uid == 0:
            entry = _unprivileged()
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments for `subprocess` under which PostgreSQL, which refuses root, agrees to run."""
        owner = self.folder.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            return {}
        return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}

    def open(self, *names: str, flags: int = os.O_RDONLY) -> int:
        """Open a file in the folder. Root follows no link there, because the server's user could link to any file.

        Raises `NoPostgres` for a link, including a hard link, and for anything but a plain file.
        """
        if os.geteuid() != 0:
            return os.open(self.folder.joinpath(*names), flags, 0o600)
        folder = os.open(self.folder, _FOLDER)
        try:
            for name in names[:-1]:
                outer, folder = folder, os.open(name, _FOLDER, dir_fd=folder)
                os.close(outer)
            file = os.open(names[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise self._link(names) from None
            raise
        finally:
            os.close(folder)
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(file)
            raise self._link(names)
        return file

    def _link(self, names: tuple[str, ...]) -> NoPostgres:
        path = self.folder.joinpath(*names)
        return NoPostgres(f"{path} is a link or no plain file, which root does not open; remove it, if it is yours")

    def read(self, *names: str) -> str:
        """Return the text of a file in the folder."""
        with os.fdopen(self.open(*names), encoding="utf-8", errors="replace") as file:
            return file.read()

    def write(self, text: str, *names: str) -> None:
        """Overwrite a file in the folder."""
        with os.fdopen(self.open(*names, flags=os.O_WRONLY | os.O_CREAT), "w", encoding="utf-8") as file:
            file.truncate(0)  # Only after it is known not to be a link.
            file.write(text)

    def check_entry(self) -> None:
        """Raise `NoPostgres` if the server's user may not enter the folder."""
        enter = ["/bin/sh", "-c", 'cd "$1"', "sh", str(self.folder)]
        if subprocess.run(enter, capture_output=True, cwd="/", check=False, **self.identity).returncode:
            name = _users().getpwuid(self.identity["user"]).pw_name if self.identity else "this user"
            raise NoPostgres(
                f"PostgreSQL refuses to run as root, so it runs as {name}, who may not enter {self.folder}; name a "
                "folder that others can reach with --data"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from starting or stopping the server meanwhile."""
        fcntl = _module("fcntl")
        with os.fdopen(self.open("lock", flags=os.O_RDWR | os.O_CREAT)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)

_EXAMPLE = json.dumps(asdict(Notes("binaries", 5433)))


def _module(name: str) -> Any:
    """Return a module that Windows lacks."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NoPostgres(
            "a server can be started on Linux and macOS only; name one that runs with --database"
        ) from None


def _users() -> Any:
    return _module("pwd")


def _unprivileged() -> Any:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return _users().getpwnam(name)
    raise NoPostgres("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as")


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def why_not(port: int) -> str | None:
    """Return why no process can listen on the port, or None if one can."""
    with socket.socket() as listener:
        # A server that has just ended leaves connections that would seem to hold its port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            return error.strerror
    return None
