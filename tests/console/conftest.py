"""Fixtures of the console: the shop's database, made once, and the console on a copy of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from durable_swarm.server.guard import LOOPBACK, Access
from durable_swarm.server.web.app import Console
from tests.console.asking import TOKEN
from tests.console.shop import run_shop


@pytest.fixture(scope="session")
def shop_file(tmp_path_factory: pytest.TempPathFactory, fresh_sqlite: Callable[[Path], str]) -> Path:
    """The file of the shop's database: read it, and change copies only."""
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    run_shop(fresh_sqlite(path))
    return path


@pytest.fixture
def shop(shop_file: Path, tmp_path: Path) -> str:
    """The URL of a copy of the shop's database."""
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(shop_file) as source, sqlite3.connect(path) as copy:
        source.backup(copy)
    return f"sqlite:///{path}"


@pytest.fixture
def console() -> Iterator[Callable[..., Console]]:
    """Makes consoles with the token of the tests; they are closed after the test."""
    made: list[Console] = []

    def make(url: str, *, read_only: bool = False, **access: Any) -> Console:
        who = Access(**{"token": TOKEN, "hosts": LOOPBACK, "name": "ana", **access})
        made.append(Console(url, who, read_only=read_only))
        return made[-1]

    yield make
    for one in made:
        one.close()
