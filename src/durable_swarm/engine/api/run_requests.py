"""The operations of people on an unfinished run: its requests, their answers, and messages to the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from durable_swarm import errors
from durable_swarm.codec import mended
from durable_swarm.concurrency import in_thread
from durable_swarm.engine.storage.run_state import notes_on
from durable_swarm.engine.storage.runs import Store
from durable_swarm.requests import Decision, Request
from durable_swarm.swarm.answering import answer, approve, fits_code, reject
from durable_swarm.types import Message
from durable_swarm.validation import check_text


class DecisionListener(Protocol):
    """A receiver of decisions, at once, in a process that executes runs."""

    def decided(self, request: Request) -> None:
        """Wake the run that waited for this request, if it is executed here."""


def decide(
    store: Store, teller: DecisionListener | None, request_id: str, decision: Decision, by: str | None
) -> Request:
    """Record a decision, once, and wake the run. Raises as `durable_swarm.swarm.answering.Answering` says."""
    check = (lambda request: fits_code(request, decision)) if decision.verdict == "approved" else None
    request = store.inbox.decide(request_id, decision, by, check)
    if teller is not None:
        teller.decided(request)
    return request


def say(store: Store, run_id: str, text: str) -> None:
    """Add a user's message to a run. Raises as `RunRequests.say` says, and `RunNotFound`."""
    say_all(store, run_id, [{"role": "user", "content": check_text("text", mended(text))}])


def say_all(store: Store, run_id: str, messages: list[Message]) -> None:
    """Add messages to a run, all or none. Raises as `RunRequests.say` says, and `RunNotFound`."""
    row = store.found(run_id, load_output=False)
    # A process that cannot decode the run would store a message that the run cannot decode, and stop it for good.
    store.start_record(row)
    store.mailbox.say(run_id, messages, notes_on(row).get("swarm", ""))


class RunRequests:
    """The part of `Run` that people use. Answering raises `AlreadyAnswered`, `RequestExpired` or `InvalidAnswer`."""

    id: str
    _store: Callable[[], Store]

    def _teller(self) -> DecisionListener | None:
        """Return the executor of runs in this process."""

    def requests(self, *, all: bool = False, children: bool = True) -> list[Request]:
        """Return the open requests of the run and of the runs below it, oldest first.

        With `all` also the answered and expired ones; without `children` only the run's own.
        """
        store = self._store()
        run_ids = [self.id, *(link.run_id for link in store.family.below([self.id]))] if children else [self.id]
        return store.inbox.of_runs(run_ids) if all else store.inbox.open_requests(run_ids)

    def answer(self, value: object, request_id: str | None = None, *, by: str | None = None) -> None:
        """Answer a question; or state that a call of unknown outcome happened, with this result.

        An answer is accepted once. Without `request_id` it is for the only open request of the run and the runs below
        it; pass it if a second click must not answer the next request. `by` names the person who answers, and is
        recorded.
        """
        self._decide(request_id, answer(value), by)

    def approve(
        self, request_id: str | None = None, *, arguments: dict[str, Any] | None = None, by: str | None = None
    ) -> None:
        """Approve a call as it is shown, or with other `arguments`; or have one of unknown outcome repeated."""
        self._decide(request_id, approve(arguments), by)

    def reject(self, reason: str = "", request_id: str | None = None, *, by: str | None = None) -> None:
        """Reject a call; the model receives the reason."""
        self._decide(request_id, reject(reason), by)

    def say(self, text: str) -> None:
        """Add a user's message to the run before its next model call; delivered once.

        An agent that was about to end the run receives it first. Raises `ConfigurationError` once the run has ended,
        and if this process lacks its codec.
        """
        say(self._store(), self.id, text)

    def _decide(self, request_id: str | None, decision: Decision, by: str | None) -> None:
        store = self._store()
        decide(store, self._teller(), self._meant(store, request_id), decision, by)

    def _meant(self, store: Store, request_id: str | None) -> str:
        """Return the id of the request that is meant.

        Raises `ConfigurationError`, `AlreadyAnswered`, `RequestExpired`.
        """
        if request_id is not None:
            asks = store.inbox.found(request_id).run_id
            if self.id not in (asks, *(run.run_id for run in store.family.above([asks])[asks])):
                raise errors.ConfigurationError(f"request {request_id!r} is not of run {self.id!r}")
            return request_id
        store.found(self.id, load_output=False)
        found = self.requests()
        if len(found) == 1:
            return found[0].id
        if found:
            ids = ", ".join(repr(request.id) for request in found)
            raise errors.ConfigurationError(f"run {self.id!r} has several open requests; name one of {ids}")
        raise store.inbox.none_open(self.id)

    async def requests_async(self, *, all: bool = False, children: bool = True) -> list[Request]:
        """Return the requests as `requests` does, on the event loop."""
        return await in_thread(lambda: self.requests(all=all, children=children))

    async def answer_async(self, value: object, request_id: str | None = None, *, by: str | None = None) -> None:
        """Answer as `answer` does, on the event loop."""
        await in_thread(lambda: self.answer(value, request_id, by=by))

    async def approve_async(
        self, request_id: str | None = None, *, arguments: dict[str, Any] | None = None, by: str | None = None
    ) -> None:
        """Approve as `approve` does, on the event loop."""
        await in_thread(lambda: self.approve(request_id, arguments=arguments, by=by))

    async def reject_async(self, reason: str = "", request_id: str | None = None, *, by: str | None = None) -> None:
        """Reject as `reject` does, on the event loop."""
        await in_thread(lambda: self.reject(reason, request_id, by=by))

    async def say_async(self, text: str) -> None:
        """Say as `say` does, on the event loop."""
        await in_thread(self.say, text)
