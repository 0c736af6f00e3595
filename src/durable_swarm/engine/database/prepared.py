"""Statements that are executed at every step: compiled once, and sent to the driver as text.

To build a statement and look it up in SQLAlchemy's cache costs more processor time than to execute it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler


class Prepared:
    """A statement for one engine. `schemas` are the names of the schemas by those in the statement."""

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        statement: sqlalchemy.ClauseElement,
        schemas: Mapping[str | None, str | None] | None = None,
    ) -> None:
        # With names, for SQLite too: who watches an engine's statements looks for values by name.
        dialect = sqlite.dialect(paramstyle="named") if engine.dialect.name == "sqlite" else engine.dialect
        compiled = statement.compile(
            dialect=dialect, schema_translate_map=schemas, render_schema_translate=schemas is not None
        )
        assert isinstance(compiled, SQLCompiler)  # What statements are compiled by.
        self.text = str(compiled)
        self._given: list[str] = []
        self._constants: dict[str, object] = {}
        self._processors: dict[str, Callable[[object], object]] = {}
        for bind, name in compiled.bind_names.items():
            if bind.required:
                self._given.append(name)
            else:
                self._constants[name] = bind.value
            if (processor := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None:
                self._processors[name] = processor

    def execute(
        self, connection: sqlalchemy.Connection, values: Mapping[str, object]
    ) -> sqlalchemy.CursorResult[*tuple[Any, ...]]:
        """Execute it with values by the names of its parameters; others are left out.

        Values read are as the driver returns them.
        """
        given = self._constants | {name: values[name] for name in self._given}
        for name, processor in self._processors.items():
            given[name] = processor(given[name])
        return connection.exec_driver_sql(self.text, given)
