"""The database: what is in it, how it is kept, and one clear error for each that cannot be used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy
from sqlalchemy import event

from durable_swarm import Agent, ConfigurationError, step
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import diagnosis, urls
from durable_swarm.engine.storage.runs import Store
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import Program, connected, stored_texts, user


@step
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def compute(number: int, context_variables: dict[str, object]) -> str:
    """Use a step and note the result."""
    context_variables["result"] = double(number)
    return "computed"


def work(make: Make) -> None:
    """Make a run with every kind of record, and one that fails."""

    def fail() -> str:
        raise ValueError("broken ü \0 \ud800")

    replies = [[("compute", {"number": 2}), ("double", {"number": 5}), ("nobody", {})], "Done", ["fail"]]
    swarm = make(ScriptedModel(replies))
    agent = Agent(functions=[compute, double, fail])
    swarm.run(agent, user("ü \0 \ud800"), {"when": (1, {2})}, run_id="r")
    with pytest.raises(ValueError, match="broken"):
        swarm.run(agent, user(), run_id="f")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a SQLite database that is not there yet: here it is made as programs make it."""
    return f"sqlite:///{tmp_path}/runs.sqlite"


@pytest.fixture
def worked(make: Make, url: str) -> str:
    """The URL of a database in which runs of every kind are recorded, still open."""
    work(make)
    return url


# What is in it


def test_every_checkpoint_is_readable_json(make_anywhere: Make, database_url: str) -> None:
    """Each stored input, output and error is JSON that a person can read with plain SQL."""
    work(make_anywhere)
    texts = stored_texts(database_url)
    assert len(texts) > 8
    records = [json.loads(text) for text in texts]
    assert all(isinstance(record, dict | list) for record in records)
    everything = " ".join(texts)
    for readable in ('"content":"Done"', "number", "computed", "broken"):
        assert readable in everything


def test_the_sqlite3_tool_shows_the_conversation(worked: str) -> None:
    """With SQLite's own JSON functions one query gives what the model said."""
    query = (
        "SELECT json_extract(output, '$.message.content') FROM operation_outputs "
        "WHERE workflow_uuid = 'r' AND function_name = 'model:Agent' ORDER BY function_id"
    )
    connection = sqlite3.connect(worked.removeprefix("sqlite:///"))
    assert connection.execute(query).fetchall() == [(None,), ("Done",)]
    connection.close()


def test_only_the_user_can_read_the_file(worked: str, tmp_path: Path) -> None:
    """The database and its companions have mode 0600."""
    files = sorted(path.name for path in tmp_path.glob("runs.sqlite*"))
    assert {"runs.sqlite", "runs.sqlite-wal", "runs.sqlite-shm", "runs.sqlite.lock"} <= set(files)
    assert {name: stat.filemode((tmp_path / name).stat().st_mode) for name in files} == dict.fromkeys(
        files, "-rw-------"
    )


def test_a_copy_of_an_opened_database_is_like_a_new_one(
    worked: str, fresh_sqlite: Callable[[Path], str], tmp_path: Path
) -> None:
    """What tests begin with has the tables and indexes of a database that a program has made, and holds no run."""

    def definitions(url: str) -> set[tuple[str, str]]:
        with connected(url) as connection:
            found = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
            return {(name, sql) for name, sql in found}

    copied = fresh_sqlite(tmp_path / "copy.sqlite")
    assert definitions(copied) == definitions(worked)
    assert stat.S_IMODE((tmp_path / "copy.sqlite").stat().st_mode) == 0o600
    with connected(copied) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM workflow_status").scalar() == 0


def test_a_reported_commit_is_on_disk(worked: str) -> None:
    """The file is in WAL mode, and each connection of the engine has synchronous=FULL."""
    engine = database_connection.connect(urls.choose(worked), create=False)
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for _ in range(3):
        with engine.connect() as connection:
            found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas}
        assert found == pragmas
    engine.dispose()
    other = sqlite3.connect(worked.removeprefix("sqlite:///"))
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    other.close()


def test_an_existing_file_is_kept(make: Make, tmp_path: Path) -> None:
    """A program's own SQLite file may hold the runs too; its tables and its mode stay."""
    path = tmp_path / "own.sqlite"
    own = sqlite3.connect(path)
    own.execute("CREATE TABLE customers (name TEXT)")
    own.execute("INSERT INTO customers VALUES ('Ada')")
    own.commit()
    own.close()
    path.chmod(0o640)
    swarm = make(ScriptedModel(["Hello"]), database=f"sqlite:///{path}")
    swarm.run(Agent(), user())
    with connected(f"sqlite:///{path}") as connection:
        assert connection.exec_driver_sql("SELECT name FROM customers").scalar() == "Ada"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_with_an_odd_name(make: Make, tmp_path: Path) -> None:
    """Spaces, umlauts, percent and question marks in a file's name are no trouble where the URL can say them."""
    path = tmp_path / "mein ordner" / "läufe 100% #1.sqlite"
    path.parent.mkdir()
    swarm = make(ScriptedModel(["Hello"]), database=f"sqlite:///{path}")
    swarm.run(Agent(), user(), run_id="r")
    assert path.exists()
    assert swarm.get("r").status == "done"


def test_a_new_postgres_database_is_created(make: Make, postgres_database: str) -> None:
    """A PostgreSQL database that does not exist is created, and used like any other."""
    parts = urlsplit(postgres_database)
    fresh = urlunsplit(parts._replace(path=parts.path + "-New ü"))
    swarm = make(ScriptedModel(["Hello"]), database=fresh)
    swarm.run(Agent(), user(), run_id="r")
    assert swarm.get("r").status == "done"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_names_of_postgres(make: Make, postgres_database: str, scheme: str) -> None:
    """The URL may begin as PostgreSQL's own tools and cloud providers write it."""
    swarm = make(ScriptedModel(["Hello"]), database=f"{scheme}://{postgres_database.split('://')[1]}")
    assert swarm.run(Agent(), user()).messages[-1]["content"] == "Hello"


# What cannot be used


def _missing_folder(path: Path) -> str:
    return f"sqlite:///{path}/no/such/folder/runs.sqlite"


def _folder(path: Path) -> str:
    (path / "folder").mkdir()
    return f"sqlite:///{path}/folder"


def _no_database(path: Path) -> str:
    (path / "text.sqlite").write_text("This is a letter and no database. " * 100)
    return f"sqlite:///{path}/text.sqlite"


def _damaged(path: Path) -> str:
    """Spoil a database behind its header."""
    file = path / "damaged.sqlite"
    connection = sqlite3.connect(file)
    for number in range(50):
        connection.execute(f"CREATE TABLE t{number} (a TEXT)")
    connection.commit()
    connection.close()
    data = bytearray(file.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    file.write_bytes(bytes(data))
    return f"sqlite:///{file}"


def _truncated(path: Path) -> str:
    """Cut a database in the middle."""
    file = Path(_damaged(path).removeprefix("sqlite:///"))
    file.write_bytes(file.read_bytes()[:60])
    return f"sqlite:///{file}"


SECRET = "s3cr3t-pa55"
BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing folder": (_missing_folder, "folder exists"),
    "a folder": (_folder, "folder"),
    "no database": (_no_database, "name another file"),
    "damaged": (_damaged, "name another file"),
    "truncated": (_truncated, "name another file"),
    "in memory": (lambda _: "sqlite:///:memory:", "name a file"),
    "no file": (lambda _: "sqlite://", "name a file"),
    "no server": (lambda _: f"postgresql://me:{SECRET}@127.0.0.1:9/runs", "server runs"),
    "no such host": (lambda _: f"postgresql://me:{SECRET}@no-such-host.invalid/runs", "host"),
    "no database name": (lambda _: f"postgresql://me:{SECRET}@127.0.0.1:9", "postgresql://USER@HOST/NAME"),
    "another kind": (lambda _: f"mysql://me:{SECRET}@127.0.0.1/runs", "neither SQLite nor PostgreSQL"),
    "no driver": (lambda _: f"foo+bar://me:{SECRET}@127.0.0.1/runs", "sqlite:///FILE"),
    "no URL": (lambda _: f"host=x password={SECRET}@y", "sqlite:///FILE"),
    "a path": (lambda _: "/tmp/runs.sqlite", "sqlite:///FILE"),
    "a bad port": (lambda _: f"postgresql://me:{SECRET}@127.0.0.1:port/runs", "postgresql://USER@HOST/NAME"),
    "an odd option": (lambda _: f"postgresql://me:{SECRET}@127.0.0.1:9/runs?no_such_option=1", "no_such_option"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_database_that_cannot_be_used(make: Make, tmp_path: Path, kind: str) -> None:
    """One ConfigurationError of one line names the remedy and never the password; a right database then works."""
    build, remedy = BROKEN[kind]
    swarm = make(ScriptedModel(["Hello"]), database=build(tmp_path))
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            swarm.run(Agent(), user())
        text = str(caught.value)
        assert remedy in text
        assert "\n" not in text
        assert SECRET not in text
    swarm.close()
    assert make(ScriptedModel(["Hello"])).run(Agent(), user()).messages[-1]["content"] == "Hello"


def test_a_wrong_password(make: Make, postgres_database: str) -> None:
    """A password that PostgreSQL refuses is told as that, without showing it."""
    parts = urlsplit(postgres_database)
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@{parts.hostname}:{parts.port}"))
    with pytest.raises(ConfigurationError, match="password") as caught:
        make(ScriptedModel(["Hello"]), database=wrong).run(Agent(), user())
    assert "user, password" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    swarm = make(ScriptedModel(["Hello"]), database=postgres_database)
    assert swarm.run(Agent(), user()).messages[-1]["content"] == "Hello"


UNPRIVILEGED = """
    import json, os, pwd, sys
    from durable_swarm import Agent, ConfigurationError, DurableSwarm
    from durable_swarm.testing import ScriptedModel

    first, second = sys.argv[1:]
    with DurableSwarm(ScriptedModel(["Hello"]), database=first) as swarm:
        swarm.run(Agent(), [])
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(pwd.getpwnam("nobody").pw_gid)
        os.setuid(pwd.getpwnam("nobody").pw_uid)
    try:
        with DurableSwarm(ScriptedModel(["Hello"]), database=second) as swarm:
            swarm.run(Agent(), [])
        found = "it worked"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(json.dumps({"found": found}))
"""


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder every user can reach and none but its owner can write."""
    folder = Path(tempfile.mkdtemp(prefix="durable-swarm-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_written(closed_folder: Path, kind: str) -> None:
    """A file or folder that this user may not write is told as that, in one line, with the remedy."""
    file = closed_folder / "runs.sqlite"
    if kind != "folder":
        make_empty(file)
        file.chmod(0o444)
    if os.geteuid() != 0 and kind == "folder":
        closed_folder.chmod(0o555)
    found = Program(UNPRIVILEGED).run("sqlite:///first.sqlite", f"sqlite:///{file}")["found"]
    assert found.startswith("ConfigurationError: ")
    assert str(file) in found
    assert "right to write it and its folder" in found
    assert "\n" not in found


def make_empty(file: Path) -> None:
    """Make a SQLite file with a table, as another program would."""
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE t (a TEXT)")
    connection.commit()
    connection.close()


def test_same_database_whatever_the_driver() -> None:
    """Two spellings of one PostgreSQL database are one database."""
    one, other = urls.choose("postgresql://me@host/x"), urls.choose("postgresql+psycopg://me@host/x")
    urls.check_same_database(one, other)
    with pytest.raises(ConfigurationError):
        urls.check_same_database(one, urls.choose("postgresql://me@host/y"))


def test_urls_are_shown_without_password() -> None:
    """The error for an unfit database shows where it is, and not how to get in."""
    url = sqlalchemy.make_url(f"postgresql://me:{SECRET}@host/x")
    text = str(diagnosis.unusable(url, RuntimeError(f"connection to host failed\nDETAIL: {SECRET}")))
    assert SECRET not in text
    assert "postgresql://me:***@host/x" in text


def test_tables_that_belong_together_are_created_at_once(tmp_path: Path) -> None:
    """While one process creates the two tables of sessions in a file, no other creates one of them in between."""
    path = tmp_path / "new.sqlite"
    engine = database_connection.connect(sqlalchemy.make_url(f"sqlite:///{path}"), create=True)
    tables = sqlalchemy.MetaData()
    first, second = (sqlalchemy.Table(name, tables, sqlalchemy.Column("id", sqlalchemy.Text)) for name in ("a", "b"))
    refused = []

    @event.listens_for(second, "before_create")
    def meet(*_: object, **__: object) -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
            try:
                other.execute("CREATE TABLE b (id TEXT)")
            except sqlite3.OperationalError as error:
                refused.append(str(error))

    database_connection.create_tables(engine, first)
    assert refused == ["database is locked"]
    assert all(database_connection.has_table(engine, table) for table in (first, second))
    engine.dispose()


def test_tables_are_looked_for_together_and_created_in_one_commit(tmp_path: Path) -> None:
    """Each look is a round trip and each commit a write to the disk, for which the first model call would wait."""
    engine = database_connection.connect(sqlalchemy.make_url(f"sqlite:///{tmp_path}/new.sqlite"), create=True)
    tables = [sqlalchemy.Table(name, sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Text)) for name in "abc"]
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    database_connection.create_tables(engine, *tables)
    assert len(commits) == 1
    assert all(database_connection.has_table(engine, table) for table in tables)
    engine.dispose()


def test_a_database_with_all_tables_is_opened_by_two_looks(database_url: str) -> None:
    """One look tells that no table is missing, and one that no index is; nothing is written."""
    at = urls.choose(database_url)
    engine = database_connection.connect(at, create=False)
    store = Store(at, engine)
    said: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, text: str, *_: object) -> None:
        said.append(text)

    store.create_tables()
    assert len(said) == 2, said
    assert not [text for text in said if "CREATE" in text.upper()]
    store.close()
