"""The start of a run, prepared before anything runs: its id, and its record in the database."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from durable_swarm import codec, errors
from durable_swarm.agents import RemoteAgent
from durable_swarm.engine.api import programs
from durable_swarm.engine.api.started_child import StartedChild
from durable_swarm.engine.backend import steps
from durable_swarm.engine.backend.admission import Admit
from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import base, names, owners, runs
from durable_swarm.engine.records.compactions import plan_record
from durable_swarm.engine.records.encoding import RecordCodec, Unreadable, input_of
from durable_swarm.engine.records.owners import BELONGS_TO
from durable_swarm.engine.records.sessions import SessionPlace, placed
from durable_swarm.engine.storage.ledger import Key
from durable_swarm.engine.storage.run_state import QUEUED, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.limits import Limits
from durable_swarm.models.choice import choose_model
from durable_swarm.models.prices import refuse_unpriced
from durable_swarm.runs import ENDED
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.swarm.compaction import Compaction
from durable_swarm.tools.calls import Cast
from durable_swarm.tools.context import calling

log = logging.getLogger("durable_swarm")

MOST_COMPARED = 100
"""The number of interrupted runs with which a run without a `run_id` is compared."""


class OpenedSwarm(Settings, Protocol):
    """The swarm that starts the run."""

    def _open(self) -> Process:
        """Open the database."""


class Cancellable(Protocol):
    """The handle of a run."""

    def cancel(self) -> None:
        """Cancel the run, unless it has ended."""


class RunStart:
    """The start of a run, with its id and its record, made before anything runs.

    Raises `NotSerializable` and `ConfigurationError`.
    """

    def __init__(
        self,
        swarm: OpenedSwarm,
        asked: RunArguments,
        run_id: str | None,
        *,
        queued: bool = False,
        accounts: tuple[Key, ...] = (),
        session: SessionPlace | None = None,
        compaction: Compaction | None = None,
    ) -> None:
        here = calling()
        inner = here.next_id() if here is not None and run_id is None and steps.in_workflow() else None
        self.caller = None if here is None else here.call.idempotency_key
        """The tool call that starts the run, or None."""
        self.named = run_id is not None or inner is not None
        self.run_id = names.check_id(run_id) if run_id is not None else inner or str(uuid.uuid4())
        self.child = None if here is None else StartedChild.of(here, self.run_id, asked.agent.name)
        """The run as a child of the run whose tool starts it, or None."""
        self.asked = asked
        self.queued = queued
        """True if another process is to execute the run, so that no model client is needed here."""
        limits = self._limits(swarm)
        self.limits_cost = limits is not None and limits.cost is not None
        """True if the run has a limit of cost of its own."""
        self.start = asked.start(lambda value: value)
        whole = swarm.codec is not None and not getattr(swarm.codec, "lossless", False)
        self.record = runs.start_record(
            self.start,
            swarm=swarm.name,
            at=time.time(),
            debug=asked.debug,
            stream=bool(asked.stream),
            whole=whole,
            limits=limits,
            accounts=(*accounts, *(() if self.child is None else self.child.budget.chain)),
            **({} if self.child is None else self.child.keys),
            patience=asked.provider_patience,
            belongs_to=owners.person() if self.child is None else self.child.belongs_to,
        )
        if not self.named and not queued:
            swarm.clients.ready()  # Before a session is claimed, because a program that ends with an error gives it up.
        default = None if self.named else programs.default_id(swarm._open, self._asked_for(session))
        if default is not None:
            self.named, self.run_id = True, default
        self.session = session
        """The run's place in a session, or None."""
        self.admit: Admit | None = None
        """Gives the run its place, in the transaction that records the run."""
        if session is not None:
            self.record = placed(self.record, session)
        if compaction is not None:
            self.record["compaction"] = plan_record(compaction)
        self._swarm, self._prices, self._default_model = swarm.name, swarm.prices, swarm.default_model
        self._record_codec, self._place = RecordCodec(swarm.codec), input_of(self.run_id)
        self.stored = self._record_codec.close(self.record, self._place)
        """The record as it goes to the database."""

    def _asked_for(self, session: SessionPlace | None) -> base.Record:
        """Return what the caller asks for; in a session that does not depend on the runs before it."""
        if session is None:
            return self.record
        rest = {key: value for key, value in self.record.items() if key not in ("agent", "context")}
        return placed(rest, SessionPlace(session.session))

    def _limits(self, swarm: OpenedSwarm) -> Limits | None:
        """Return the limits that hold for the run. A child that is given none has those of its ancestors alone."""
        if self.asked.limits is not None:
            return self.asked.limits
        if self.child is None:
            return swarm.limits
        limits = self.child.budget.limits
        return None if limits is None else limits.of_child()

    @property
    def belongs_to(self) -> str | None:
        """The person to whom the run belongs, or None."""
        return self.record.get(BELONGS_TO)

    @property
    def cast(self) -> Cast:
        """The caller's agent, by name; empty if the caller knows its name only."""
        agent = self.asked.agent
        return {} if isinstance(agent, RemoteAgent) else {agent.name: agent}

    @property
    def root(self) -> str:
        """The id of the top run of the run's family: its own, unless a tool call of another run starts it."""
        return self.run_id if self.child is None else self.child.link.root

    @property
    def about(self) -> dict[str, object]:
        """The notes on the run."""
        queued = {QUEUED: True} if self.queued else {}
        belongs = {} if self.belongs_to is None else {BELONGS_TO: self.belongs_to}
        return {"agent": self.asked.agent.name, "swarm": self._swarm, "at": self.record["at"], **belongs, **queued}

    def check_prices(self) -> None:
        """Check that a limit of cost can be kept, before anything is recorded. Raises `ConfigurationError`."""
        if self.limits_cost and not isinstance(self.asked.agent, RemoteAgent):
            model = choose_model(self.asked.agent, self.asked.model_override, self._default_model)
            refuse_unpriced(self._prices, model.name)

    def warn_of_doubles(self, store: Store, earlier: list[str]) -> None:
        """Warn once, unless the run has an id, if one of these interrupted runs has the same input, and continues."""
        if self.named or self.caller is not None or self.session is not None:
            return
        compared = earlier[:MOST_COMPARED]
        earlier.clear()
        for run_id in compared:
            row = store.row(run_id, load_output=False)
            with contextlib.suppress(errors.RunConflict, errors.ConfigurationError, Unreadable, errors.ReplayMismatch):
                if row is None or state_of(row) in ENDED:
                    continue
                self.check_same(store.start_record(row))
                log.warning(
                    "run %r, which was interrupted, has the same agent and messages and continues; run %r is a new "
                    "one, and does all of it again. Give run() a run_id, so that a restart continues instead "
                    "(`durable-swarm run SCRIPT` does it for an unchanged program)",
                    run_id,
                    self.run_id,
                )
                return

    def check_same(self, recorded: base.Record) -> None:
        """Check that a recorded run of this id has the same input. Raises `RunConflict`."""
        asked = self._record_codec.open(
            self.stored, self._place, "what was asked"
        )  # As it is after a codec that changes it.
        if self.belongs_to is not None and recorded.get(BELONGS_TO, self.belongs_to) != self.belongs_to:
            self._conflict("and is not yours")
        if recorded.get("session") != asked.get("session"):
            self._conflict(f"in session {recorded['session']!r}" if "session" in recorded else "outside this session")
        if self.session is None and recorded["agent"] != asked["agent"]:
            self._conflict(f"started with agent {recorded['agent']!r}")
        if codec.dumps(recorded["messages"]) != codec.dumps(asked["messages"]):
            self._conflict("started with other messages")

    @contextlib.contextmanager
    def withdrawing(self, handle: Callable[[str], Cancellable]) -> Iterator[None]:
        """Wait for the run in this block. If a key was refused, cancel a run whose caller has no id to ask again with.

        The caller received the error and will start a new run: the old one must not be executed as well once the key is
        right.
        """
        try:
            yield
        except errors.ModelError:
            if not self.named:
                with contextlib.suppress(errors.DurableSwarmError):
                    handle(self.run_id).cancel()
            raise

    def _conflict(self, difference: str) -> None:
        raise errors.RunConflict(
            f"run {self.run_id!r} exists already, {difference}; use a new run_id, or the same agent and messages",
            run_id=self.run_id,
        )
