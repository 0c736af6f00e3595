"""The folder of a server: its data, its password, its port, and the user that all of it belongs to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import socket
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
"""The notes while they are written."""

_UNFIT = '$"`\\\n'
"""What pg_ctl does not quote when it has a shell start the server."""

Keeper = Literal["docker", "binaries"]


class NoPostgres(DurableSwarmError):
    """The server cannot be started, reached or stopped; the message says what to do."""


@dataclass(frozen=True)
class Notes:
    """What is kept of a server between starts, beside its password: who runs it, and on which port."""

    by: Keeper
    port: int


def default_folder() -> Path:
    """Give where a user's server lives. Root's is outside its home, which the server's user may not enter."""
    if os.geteuid() == 0:
        return Path("/var/lib/durable-swarm/postgres")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "durable-swarm" / "postgres"


class Place:
    """A server's folder, and what is in it."""

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
        """What was noted at the last start; None if there was none."""
        try:
            found = json.loads(self._notes.read_text())
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
        fresh = self._notes.with_name(_FRESH)
        fresh.write_text(json.dumps(asdict(notes)) + "\n")
        fresh.replace(self._notes)

    def url(self, port: int) -> str:
        """Give the URL of the server's database for programs, with the password."""
        return f"postgresql://{USER}:{quote(self.password(), safe='')}@{HOST}:{port}/{DATABASE}"

    def password(self) -> str:
        """Give the password of the server's superuser."""
        with contextlib.suppress(FileNotFoundError):
            if found := self.password_file.read_text().strip():
                return found
        raise NoPostgres(
            f"the password in {self.password_file} is gone, without which nobody gets in; put it back, or start anew "
            "in another folder (--data)"
        )

    def make_password(self) -> None:
        """Make a new password, for the server's user only."""
        self.password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        self.give(self.password_file)

    def prepare(self) -> None:
        """Make the folder, or take an empty one, for the server's user only. Raises for one that holds other things."""
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

    def give(self, path: Path) -> None:
        """Make the file the server's user's."""
        if self.identity:
            os.chown(path, self.identity["user"], self.identity["group"], follow_symlinks=False)

    def check_entry(self) -> None:
        """Raise `NoPostgres` if the server's user may not enter the folder."""
        enter = ["/bin/sh", "-c", 'cd "$1"', "sh", str(self.folder)]
        if subprocess.run(enter, capture_output=True, cwd="/", check=False, **self.identity).returncode:
            name = pwd.getpwuid(self.identity["user"]).pw_name if self.identity else "this user"
            raise NoPostgres(
                f"PostgreSQL refuses to run as root, so it runs as {name}, who may not enter {self.folder}; name a "
                "folder that others can reach with --data"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from starting or stopping the server meanwhile."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_EXAMPLE = json.dumps(asdict(Notes("binaries", 5433)))


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgres("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as")


def free_port() -> int:
    """Give a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def why_not(port: int) -> str | None:
    """Give why nobody can listen on the port, None if one can."""
    with socket.socket() as listener:
        # A server that ended a moment ago leaves connections that would seem to hold its port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            return error.strerror
    return None
