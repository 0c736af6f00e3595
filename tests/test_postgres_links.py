"""Root follows no link in the folder of a server, which belongs to the server's user."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durable_swarm.postgres import NoPostgres
from durable_swarm.postgres.binaries import Local
from durable_swarm.postgres.data_folder import DataFolder, Notes, _unprivileged

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that others may enter."""
    made = Path(tempfile.mkdtemp(prefix="durable-swarm-links-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def place(base: Path) -> DataFolder:
    """A server's folder that has its data, and belongs to the server's user."""
    user = _unprivileged()
    (base / "server" / "data").mkdir(parents=True)
    for path in (base / "server", base / "server" / "data"):
        os.chown(path, user.pw_uid, user.pw_gid)
    return DataFolder(base / "server")


@pytest.fixture
def victim(base: Path) -> Path:
    """A file of root's, as the pid file of a server looks."""
    made = base / "victim"
    made.write_text("4194304\nthe rest\n")
    made.chmod(0o600)
    return made


def lock(place: DataFolder) -> None:
    """Keep others from starting the server."""
    with place.locked():
        pass


def give_up(place: DataFolder) -> None:
    """Prepare a start after a crash."""
    Local(place, {})._retire()


def copy_programs(place: DataFolder) -> None:
    """Copy programs to where the server's user may read them."""
    install = place.folder.parent / "package" / "install"
    (install / "bin").mkdir(parents=True)
    (install / "bin" / "initdb").write_text("a program")
    assert (Local(place, {})._copy(install) / "bin" / "initdb").read_text() == "a program"


USES: dict[str, Callable[[DataFolder], object]] = {
    "lock": lock,
    "server.json.new": lambda place: place.note(Notes("binaries", 5433)),
    "server.json": lambda place: place.notes,
    "password": lambda place: place.password(),
    "data/postmaster.pid": give_up,
    "data/PG_VERSION": lambda place: Local(place, {})._major(),
    "server.log": lambda place: Local(place, {})._log_size(),
}


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", USES)
def test_no_link_is_followed(name: str, link: Callable[[Path, Path], None], place: DataFolder, victim: Path) -> None:
    """A file of root's that a name in the folder leads to is neither read, emptied, written, nor given away."""
    before = victim.stat()
    link(victim, place.folder / name)
    with pytest.raises(NoPostgres, match="is a link or no plain file"):
        USES[name](place)
    assert victim.read_text() == "4194304\nthe rest\n"
    after = victim.stat()
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (before.st_uid, before.st_mode, before.st_mtime_ns)


@pytest.mark.parametrize("name", USES)
def test_nothing_waits_for_a_pipe(name: str, place: DataFolder) -> None:
    """A named pipe in the place of a file is refused at once."""
    os.mkfifo(place.folder / name)
    with pytest.raises(NoPostgres, match="is a link or no plain file"):
        USES[name](place)


def test_a_linked_data_folder_is_not_entered(place: DataFolder, victim: Path) -> None:
    """A link in the place of the data leads root nowhere."""
    (place.folder / "data").rmdir()
    inner = victim.parent / "inner"
    inner.mkdir()
    victim.rename(inner / "postmaster.pid")
    (place.folder / "data").symlink_to(inner)
    with pytest.raises(NoPostgres, match="is a link or no plain file"):
        give_up(place)
    assert (inner / "postmaster.pid").read_text() == "4194304\nthe rest\n"


def test_a_password_is_made_in_the_folder(place: DataFolder, victim: Path) -> None:
    """A new password replaces a link, and the file it led to keeps its text and its owner."""
    (place.folder / "password").symlink_to(victim)
    place.make_password()
    assert victim.read_text() == "4194304\nthe rest\n"
    assert victim.stat().st_uid == 0
    assert len(place.password()) == 32
    assert (place.folder / "password").stat().st_uid == place.folder.stat().st_uid


@pytest.mark.parametrize("where", ["programs", "programs/package", "programs/package/install"])
def test_programs_are_copied_into_the_folder_only(where: str, place: DataFolder, victim: Path) -> None:
    """A link in the place of the copied programs does not have root write, or give away, what it leads to."""
    away = victim.parent / "away"
    away.mkdir()
    link = place.folder / where
    link.parent.mkdir(parents=True, exist_ok=True)
    for path in (place.folder / "programs", place.folder / "programs" / "package"):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, place.folder.stat().st_uid, -1)
    link.symlink_to(away)
    copy_programs(place)
    assert list(away.iterdir()) == []
    assert away.stat().st_uid == 0
