"""The runs that one person sees: their own, and those that belong to nobody."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Text, case, func

from durable_swarm.engine.records.owners import BELONGS_TO


def seen_by(person: str, notes: ColumnElement[Any], *, lite: bool) -> ColumnElement[bool]:
    """True for the row of a run that a person sees; `notes` is its column of notes."""
    # A damaged row must not fail a list.
    owner = (
        func.json_extract(case((func.json_valid(notes), notes)), f"$.{BELONGS_TO}")
        if lite
        else notes.op("->>", return_type=Text())(BELONGS_TO)
    )
    found: ColumnElement[bool] = func.coalesce(owner, person) == person
    return found
