"""A server run by Docker: the official image, in a container and on a volume of its own.

A container holds nothing that is needed again, so each start creates a new one; the volume keeps the data.
"""

from __future__ import annotations

import hashlib
import os
import subprocess

from durable_swarm.postgres.data_folder import DATABASE, HOST, USER, DataFolder, NoPostgres

IMAGE = "postgres:18"


def works() -> bool:
    """Return True if Docker is installed and its daemon answers."""
    try:
        return _docker("version", timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Docker:
    """A server in a container."""

    def __init__(self, place: DataFolder) -> None:
        self.place = place
        self.name = f"durable-swarm-postgres-{hashlib.sha256(bytes(place.folder)).hexdigest()[:8]}"

    def launch(self, port: int) -> None:
        """Start a container. Raises `NoPostgres` if Docker refuses."""
        if self.place.notes is None and not self.place.password_file.exists():
            self.place.make_password()
        _docker("rm", "--force", self.name)
        # The password is only named here and passed in the environment, because any user can read command lines.
        settings = ("--env", "POSTGRES_PASSWORD", "--env", f"POSTGRES_USER={USER}", "--env", f"POSTGRES_DB={DATABASE}")
        where = ("--publish", f"{HOST}:{port}:5432", "--volume", f"{self.name}:/var/lib/postgresql")
        done = _docker("run", "--detach", "--name", self.name, *settings, *where, IMAGE, password=self.place.password())
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it gives no reason"])[0]
            raise NoPostgres(f"Docker does not start {IMAGE}: {reason}; fix that, or start with --no-docker")

    def pid(self) -> int | None:
        """Return None, because the process belongs to Docker."""
        return None

    def alive(self) -> bool:
        """Return True if the container runs."""
        done = _docker("container", "inspect", "--format", "{{.State.Running}}", self.name)
        return done.returncode == 0 and done.stdout.strip() == "true"

    def stop(self) -> None:
        """Stop the server and remove its container; the volume stays."""
        for command in (("stop", "-t", "60"), ("rm",)):
            done = _docker(*command, self.name)
            if done.returncode:
                raise NoPostgres(f"Docker does not stop {self.name}: {done.stderr.strip()}")


def _docker(
    *arguments: str, password: str | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    environment = {**os.environ, "POSTGRES_PASSWORD": password} if password else None
    try:
        return subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"docker: {error.strerror}")
