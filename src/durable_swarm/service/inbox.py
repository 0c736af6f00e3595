"""The open requests of all runs, and answering them, for every face."""

from __future__ import annotations

from typing import Any

from durable_swarm.answering import answer, approve, reject
from durable_swarm.checks import check_text
from durable_swarm.engine.inbox import NoRequest
from durable_swarm.engine.store import Store, notes_on
from durable_swarm.errors import AlreadyAnswered, ConfigurationError
from durable_swarm.requests import Decision, Request

NAMED = 5
"""How many requests an ambiguous id names."""


class Inbox:
    """The requests of one database. Where a request's id is asked for, that of a run with one open request will do.

    What answers raises `AlreadyAnswered`, `RequestExpired`, `InvalidAnswer`, `NoRequest`, and `ConfigurationError` for
    a run with several open requests. `by` says who answers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, run_id: str | None = None, limit: int | None = None) -> list[Request]:
        """Give the open requests, oldest first: of all runs, or of one."""
        return self._store.inbox.open_requests(None if run_id is None else [run_id], limit)

    def answer(self, name: str, value: Any, by: str | None) -> Request:
        """Answer a question, or give the result of a call that happened, and give the request as it is then."""
        return self._decide(name, answer(value), by)

    def approve(self, name: str, arguments: dict[str, Any] | None, by: str | None) -> Request:
        """Approve a call, perhaps with other arguments, and give the request as it is then."""
        return self._decide(name, approve(arguments), by)

    def reject(self, name: str, reason: str, by: str | None) -> Request:
        """Reject a call, and give the request as it is then."""
        return self._decide(name, reject(reason), by)

    def complete(self, token: str, result: Any, by: str | None) -> bool:
        """Post the result of a call that has given `later(token)`, or will; gives whether a run waits for it."""
        return self._store.inbox.complete(check_text("token", token), answer(result), by, "")

    def say(self, run_id: str, text: str) -> None:
        """Add a user's message to a run before its next model call. Raises `RunNotFound`, `ConfigurationError`."""
        row = self._store.found(run_id, load_output=False)
        self._store.mailbox.say(run_id, text, notes_on(row).get("swarm", ""))

    def _decide(self, name: str, decision: Decision, by: str | None) -> Request:
        return self._store.inbox.decide(self._meant(name), decision, by)

    def _meant(self, name: str) -> str:
        """Give the id of the request that is meant by its own id or by its run's."""
        if self._store.row(name, load_output=False) is None:
            return name
        found = self.list(name)
        if len(found) == 1:
            return found[0].id
        if not found:
            known = self._store.inbox.of_run(name)
            if known and known[-1].status == "answered":
                raise AlreadyAnswered(f"request {known[-1].id!r} was answered already", request_id=known[-1].id)
            raise NoRequest(f"run {name!r} has no open request; `durable-swarm inbox` lists those of all runs")
        ids = ", ".join(request.id for request in found[:NAMED])
        raise ConfigurationError(f"run {name!r} has {len(found)} open requests; name one of {ids}")
