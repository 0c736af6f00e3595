"""Changes to DBOS itself, each with a test. They are made when a database is opened, and undone when it is closed.

Beyond DBOS's public interface:

- `startup_recovery_thread`: DBOS hands the unfinished runs of a process of this name to a queue that every process
  polls, and counts each time as an attempt, of which it allows a hundred. We take over ourselves.
- `db_retry`: DBOS's pauses after a lost connection double up to 90 s, which is too long for a run to wait.
- `DBOSDefaultSerializer`: rows marked as pickle are unpickled with any serializer; a database must not run code.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator

from dbos import _dbos, _serialization, _sys_db

from durable_swarm.errors import ConfigurationError

_undo: list[Callable[[], object]] = []


def change(where: object, name: str, value: object) -> None:
    """Change an attribute of a module or object of DBOS until `restore`."""
    names = vars(where)
    if names.get(name) is not value:
        undo = functools.partial(names.__setitem__, name, names[name]) if name in names else lambda: names.pop(name)
        _undo.append(undo)
        names[name] = value


def restore() -> None:
    """Undo the changes."""
    global _owns_dbos
    _owns_dbos = False
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def recovering_nothing() -> Iterator[None]:
    """Make a DBOS that is launched in this block recover nothing by itself."""
    recovery = vars(_dbos)["startup_recovery_thread"]
    vars(_dbos)["startup_recovery_thread"] = lambda *_: None
    try:
        yield
    finally:
        vars(_dbos)["startup_recovery_thread"] = recovery


LONGEST_PAUSE = 5.0
"""Seconds, at most, between two attempts to write after the database was lost."""


def shorten_pauses() -> None:
    """Make DBOS retry soon after the database was lost."""
    longest = LONGEST_PAUSE / 1.5  # DBOS draws each pause between half and one and a half times its base value.
    _undo.append(functools.partial(setattr, _sys_db.db_retry, "__defaults__", _sys_db.db_retry.__defaults__))
    _sys_db.db_retry.__defaults__ = (1.0, longest)  # For functions decorated at each call.
    for method in vars(_sys_db.SystemDatabase).values():
        code = getattr(method, "__code__", None)
        if code is not None and "max_backoff" in code.co_freevars and method.__closure__:
            cell = method.__closure__[code.co_freevars.index("max_backoff")]
            _undo.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
            cell.cell_contents = longest


_unpickle = _serialization.DBOSDefaultSerializer.deserialize
_refusing: contextvars.ContextVar[bool] = contextvars.ContextVar("durable_swarm_refusing_pickle", default=False)
_owns_dbos = False


def _guarded(text: str) -> object:
    if _owns_dbos or _refusing.get():
        raise ConfigurationError("a row of the database is a pickle, which is never read: it could run any code")
    return _unpickle(text)


def refuse_pickle(*, everywhere: bool) -> None:
    """Refuse pickled rows in the whole process (we launched DBOS), or only inside `reading` (our runs)."""
    global _owns_dbos
    _owns_dbos = everywhere
    change(_serialization.DBOSDefaultSerializer, "deserialize", _guarded)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Refuse pickled rows in this context."""
    change(_serialization.DBOSDefaultSerializer, "deserialize", _guarded)
    token = _refusing.set(True)
    try:
        yield
    finally:
        _refusing.reset(token)


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Allow pickled rows again in the user's code, whose own use of DBOS is the program's responsibility."""
    token = _refusing.set(False)
    try:
        yield
    finally:
        _refusing.reset(token)


def silence() -> None:
    """Stop DBOS's own log from propagating: it prints statements with their values, which are the users' data."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
