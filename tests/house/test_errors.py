"""Every error of the package keeps what it knows, wherever it goes."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from durable_swarm import codec, errors
from durable_swarm.errors import DurableSwarmError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DurableSwarmError) and kind.__module__ == errors.__name__
]
SAMPLES: dict[type, Any] = {str: "wörk['ö']\n", int: 503, float: 0.5, bool: True}


def _full(kind: type[DurableSwarmError]) -> DurableSwarmError:
    """Give an error with a message and a value for every attribute its class declares."""
    attributes = {}
    for name, hint in get_type_hints(kind).items():
        [wanted] = [part for part in get_args(hint) or (hint,) if part is not NoneType]
        attributes[name] = SAMPLES[wanted]
    return kind("it went wrong; do this", **attributes)


def _assert_equal(found: BaseException, error: DurableSwarmError) -> None:
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_database(kind: type[DurableSwarmError]) -> None:
    """Type, message and attributes come back unchanged from a stored record."""
    error = _full(kind)
    stored = codec.dumps(codec.encode(errors.to_record(error)))
    _assert_equal(errors.from_record(codec.decode(json.loads(stored))), error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickle_and_copy(kind: type[DurableSwarmError]) -> None:
    """Type, message and attributes pass between processes and through copies."""
    error = _full(kind)
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        _assert_equal(found, error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_attributes_has_their_defaults(kind: type[DurableSwarmError]) -> None:
    """An error made from a message alone answers for every attribute it declares."""
    error = kind("message")
    assert error.attributes == {}
    assert all(hasattr(error, name) for name in get_type_hints(kind))


def test_the_drawing_names_every_error() -> None:
    """The tree on top of the module lists each class."""
    drawing = errors.__doc__ or ""
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in drawing] == []
