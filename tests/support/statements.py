"""SQL that is compiled once for all databases that a process of the tests opens.

A program opens one database. A process of the tests opens hundreds, and compiling the same statements for each was half
of the work of opening one. SQLAlchemy keeps compiled statements by dialect and by table, and makes both anew with each
engine; so what is alike is shared here. The SQL, the connections and what they are told stay those of the engine.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.util import LRUCache

_create_engine = sqlalchemy.create_engine
_Table = sqlalchemy.Table
_SIMPLE = (str, int, float, bool, type(None))

_compiled: LRUCache[Any, Any] = LRUCache(5000)
_dialects: dict[Any, sqlalchemy.Dialect] = {}
"""Dialects that have seen their database, by what they were made of."""
_tables: dict[Any, sqlalchemy.Table] = {}


class _Indexes(set[sqlalchemy.Index]):
    """The indexes of a shared table, which every user of it defines anew."""

    def add(self, index: sqlalchemy.Index) -> None:
        if index.name not in {known.name for known in self}:
            super().add(index)


def share() -> None:
    """Share dialects, tables and compiled statements between the databases that this process opens from now on."""
    setattr(sqlalchemy, "create_engine", _engine)  # noqa: B010, one of its overloads is no function for mypy
    setattr(sqlalchemy, "Table", _table)  # noqa: B010, a class for mypy


def _engine(*args: Any, **options: Any) -> sqlalchemy.Engine:
    engine = _create_engine(*args, **options)
    key = _made_of(engine)
    if key in _dialects:
        engine.dialect = _dialects[key]
    else:
        own = engine.dialect
        event.listen(engine, "first_connect", lambda *_: _dialects.setdefault(key, own))
    engine._compiled_cache = _compiled
    return engine


def _made_of(engine: sqlalchemy.Engine) -> Any:
    """Give what tells a dialect from another: its options, and the server, which it asks for its version."""
    url, options = engine.url, vars(engine.dialect)
    simple = sorted((name, repr(value)) for name, value in options.items() if isinstance(value, _SIMPLE))
    functions = sorted((name, id(value)) for name, value in options.items() if callable(value))
    return type(engine.dialect), url.host, url.port, str(url.query), tuple(simple), tuple(functions)


def _table(name: str, metadata: sqlalchemy.MetaData, *parts: Any, **options: Any) -> sqlalchemy.Table:
    key = name, metadata.schema, tuple(repr(part) for part in parts), repr(options)
    if key not in _tables:
        _tables[key] = _Table(name, metadata, *parts, **options)
        _tables[key].indexes = _Indexes(_tables[key].indexes)
    return _tables[key]
