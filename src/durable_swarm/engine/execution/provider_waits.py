"""Model calls that wait while their provider is away, and the elections of the runs that ask it again.

A failed call is first tried again at once, a few times, by its own run (`models.call`). If that does not help, or if
several runs of this process fail, the outage is noted in the database, and every run that needs the model waits. One
run at a time asks again, by election: its success wakes all others.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from durable_swarm import errors
from durable_swarm.concurrency import Runtime, in_thread
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.waiting import WaitingCalls
from durable_swarm.engine.signals import RunHeld, StepFailed
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.provider_outages import AWAY, Failure, Provider, ProviderOutage, wait_noted
from durable_swarm.engine.storage.run_state import notes_on
from durable_swarm.engine.storage.runs import Store
from durable_swarm.models.provider_errors import LONGEST_PAUSE, is_away, retry_after

log = logging.getLogger("durable_swarm")

RETRIES = 2
"""Maximum retries that a run makes by itself before it waits for its provider."""

CROWD = 3
"""How many runs of this process, without a success in between, must fail for none of them to try again by itself."""

LOOK = 1.0
"""Seconds between looks at the database, where it may have changed, while no outage is known here."""

T = TypeVar("T")


class ProviderWaits:
    """The outages of providers, as this process knows them, and its runs that wait for their end."""

    def __init__(self, store: Store, waiting_calls: WaitingCalls) -> None:
        self.store = store
        self.waiting_calls = waiting_calls
        self._lock = threading.Lock()
        self._known: dict[str, ProviderOutage] = {}
        self._waiting: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """The runs that wait in memory, by the key of the outage, those that have waited longest first."""
        self._failing: defaultdict[str, set[str]] = defaultdict(set)
        """The runs that have failed since the last success of a model."""

    def call(self, run: Execution, provider: Provider, step: str, turn: int | None, waits: Runtime) -> PatientCall:
        """Return a model call that waits while its provider is away; `step` is the name of its step."""
        return PatientCall(self, run, provider, step, turn, waits)

    def is_away(self, key: str) -> bool:
        """Return True if this process knows of an outage."""
        return key in self._known

    def note_failure(self, key: str, run_id: str) -> bool:
        """Note a failed try, and return True if the run must not try again by itself."""
        self._failing[key].add(run_id)
        return len(self._failing[key]) >= CROWD or self.is_away(key)

    def note_success(self, key: str) -> None:
        """Note a try that succeeded."""
        self._failing.pop(key, None)

    def read(self, key: str) -> ProviderOutage | None:
        """Return an outage as the database has it."""
        found = self.store.outages.known([key]).get(key)
        self._note({**{other: outage for other, outage in self._known.items() if other != key}, **_named(found)})
        return found

    def end(self, keys: set[str]) -> None:
        """Note that these providers answer again, and wake the runs that wait for them."""
        self.store.outages.end(keys)
        self._note({key: outage for key, outage in self._known.items() if key not in keys})
        self._wake_those_without_outage()

    @contextlib.contextmanager
    def waits_here(self, key: str, run_id: str) -> Iterator[None]:
        """Count a run among those that wait in memory."""
        with self._lock:
            self._waiting[key][run_id] = None
        try:
            yield
        finally:
            with self._lock:
                self._waiting[key].pop(run_id, None)
                if not self._waiting[key]:
                    del self._waiting[key]

    def look(self) -> None:
        """While any provider is away: wake runs whose provider answers again, elect a run for each try that is due."""
        if self._known or self._waiting:
            self.look_for_new()

    def look_for_new(self) -> None:
        """Look at the outages in the database."""
        self._note(self.store.outages.known())
        self._wake_those_without_outage()
        for outage in list(self._known.values()):
            if outage.is_due:
                self._elect(outage.key)

    def _elect(self, key: str) -> None:
        with self._lock:
            here = next(iter(self._waiting.get(key, ())), None)
        run_id = here or self.store.outages.suspended(key)
        if run_id is None:
            self.store.outages.forget(key)
        elif self.store.outages.elect(key, run_id):
            self.waiting_calls.wake([run_id])
            self.store.inbox.wake(run_id)  # It may just have been suspended.

    def _wake_those_without_outage(self) -> None:
        with self._lock:
            over = [run_id for key, runs in self._waiting.items() if key not in self._known for run_id in runs]
        self.waiting_calls.wake(over)

    def _note(self, known: dict[str, ProviderOutage]) -> None:
        """Replace what is known here, and log what is new in it, once for all runs."""
        before, self._known = self._known, known
        for key in known.keys() - before.keys():
            log.warning("runs wait: %s", known[key].sentence(known[key].since))
        for key in before.keys() - known.keys():
            log.warning("runs no longer wait for the provider of model %r", before[key].model)


def _named(outage: ProviderOutage | None) -> dict[str, ProviderOutage]:
    return {} if outage is None else {outage.key: outage}


@dataclass
class PatientCall:
    """One model call, tried until it succeeds, fails for good, or the run's patience is over."""

    waiting: ProviderWaits
    run: Execution
    provider: Provider
    step: str
    turn: int | None
    waits: Runtime
    since: int | None = None
    """The time since when the run has been waiting, in milliseconds since 1970; None if it does not wait."""
    failed_at: int | None = None
    """The time of the first failure, from which on its patience counts."""
    of: str = ""
    """The key of the outage that the note on the run names."""
    elected: bool = False
    """True if this run was elected for the next try."""
    error: errors.ModelError | None = None
    """The error of the last try of this execution."""

    def gives_up(self, error: Exception, attempt: int) -> bool:
        """Return True if the run is to wait for its provider instead of trying again by itself."""
        if not self.run.patience or not is_away(error):
            return False
        self.failed_at = self.failed_at or now()
        crowded = self.waiting.note_failure(self.provider.key, self.run.run_id)
        return crowded or attempt > RETRIES or (retry_after(error) or 0) > LONGEST_PAUSE or self.since is not None

    async def result(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the call. Raises `StepFailed`, and `RunSuspended` when the run leaves memory."""
        if not self.run.patience:
            return await attempt()
        if self.run.recovered:
            await self._do(self._read_note)
        while True:
            while self._may_have_to_wait and not await self._do(self._may_ask):
                await self._wait()
            try:
                result = await attempt()
            except BaseException as error:
                failure = error.error if isinstance(error, StepFailed) else None
                if not isinstance(failure, errors.ModelError) or not failure.away:
                    await self._leave(error)
                    raise
                await self._do(partial(self._failed, failure))
            else:
                if self.elected or self.since is not None:
                    await self._do(self._answered)
                else:
                    self.waiting.note_success(self.provider.key)
                return result

    async def _leave(self, error: BaseException) -> None:
        """End the wait of a run that fails with another error, or is interrupted."""
        if isinstance(error, StepFailed):
            refused = isinstance(error.error, errors.ModelError)
            await self._do(self._answered if refused else self._gave_up)
        elif self.elected:
            with contextlib.suppress(RunHeld):
                await self._do(partial(self.waiting.store.outages.withdraw, self.run.run_id))

    @property
    def _may_have_to_wait(self) -> bool:
        return self.since is not None or self.waiting.is_away(self.provider.key)

    async def _do(self, function: Callable[[], object]) -> object:
        with engines_code(f"the wait of run {self.run.run_id!r} for its provider"):
            return await in_thread(function)

    def _read_note(self) -> None:
        """Continue a wait that an earlier execution has begun."""
        noted = wait_noted(notes_on(self.waiting.store.found(self.run.run_id, load_output=False)).get(AWAY))
        if noted is not None:
            self.of, self.since = noted

    def _begin(self, reason: str) -> None:
        """Note on the run that it waits, and tell its readers, if that is new."""
        if self.since is not None and self.of == self.provider.key:
            return
        if self.since is None and self.turn is not None:
            self.run.publisher.waiting("run.waiting", kind="provider", model=self.provider.model, reason=reason)
        self.of, self.since = self.provider.key, self.since or self.failed_at or now()
        self.waiting.store.annotate(self.run.run_id, **{AWAY: {"of": self.of, "since": self.since}})

    def _may_ask(self) -> bool:
        """Return True if the provider is not away, or if it is this run that asks it again."""
        outage = self.waiting.read(self.provider.key)
        if outage is None:
            return True
        outages, run_id = self.waiting.store.outages, self.run.run_id
        mine = outage.elected == run_id or outages.elect(outage.key, run_id)
        self.elected = mine and outages.confirm(outage.key, run_id)
        if not self.elected:
            self._begin(outage.reason)
        return self.elected

    def _failed(self, error: errors.ModelError) -> None:
        self.error = error
        failure = Failure(error.message.partition(": ")[2][:300], error.status, error.retry_after)
        outages, keys = self.waiting.store.outages, {self.of, self.provider.key}
        outages.begin(self.provider, failure)
        if self.elected:
            for key in keys:
                outages.failed(key, self.run.run_id, failure)
        self.elected = False
        self._begin(failure.reason)
        self.waiting.read(self.provider.key)

    def _answered(self) -> None:
        """The provider has answered, if only to refuse: the run no longer waits, and if it was elected, no other."""
        self.waiting.note_success(self.provider.key)
        if self.elected:
            self.waiting.end({self.of, self.provider.key})
            self.elected = False
        self._gave_up()

    def _gave_up(self) -> None:
        """Note that the run no longer waits; if it was elected, another run may be."""
        if self.elected:
            self.waiting.store.outages.withdraw(self.run.run_id)
            self.elected = False
        if self.since is not None:
            self.waiting.store.annotate(self.run.run_id, **{AWAY: None})
            self.since = None

    async def _wait(self) -> None:
        key, since = self.provider.key, self.since or now()
        left = since / 1000 + self.run.patience - now() / 1000
        if left <= 0:
            raise StepFailed(await self._end_of_patience(since), self.step)
        self.run.away = key
        with self.waiting.waits_here(key, self.run.run_id):
            await self.waiting.waiting_calls.wait_outside_calls(self.run, self.waits, seconds=left)
        self.run.away = None

    async def _end_of_patience(self, since: int) -> errors.ModelError:
        """Return the error of a run whose patience is over. Its note stays: `resume` makes the next try due."""
        outage = await in_thread(self.waiting.read, self.provider.key)
        status = outage.status if outage is not None else None
        reason = outage.reason if outage is not None else "it did not answer"
        return errors.ModelError(
            f"the provider of model {self.provider.model!r} was away for {(now() - since) / 1000:.0f} s, as long as "
            f"the run waits for it (provider_patience): {reason}",
            status=status,
            error_type="" if self.error is None else self.error.error_type,
            tries=1 if self.error is None else self.error.tries,
            away=True,
        )
