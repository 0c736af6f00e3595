"""`DurableSession`: a conversation of many runs, in a database."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from durable_swarm import codec, errors
from durable_swarm.agents import RemoteAgent, find_or_none
from durable_swarm.background import background_loop
from durable_swarm.concurrency import in_thread, running_loop
from durable_swarm.engine.api.live_stream import dictionaries_async
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.run_requests import say_all
from durable_swarm.engine.api.start import RunStart
from durable_swarm.engine.api.starter import RunStarter
from durable_swarm.engine.history.conversation import left_by, newest_first
from durable_swarm.engine.records import names, runs
from durable_swarm.engine.records.sessions import SessionPlace
from durable_swarm.engine.storage.ledger import Key, Ledger
from durable_swarm.engine.storage.messages import HasEnded
from durable_swarm.engine.storage.retention import delete_session
from durable_swarm.engine.storage.run_state import moment, state_of
from durable_swarm.engine.storage.session_state import BEGUN, LEFT_OUT, WAITS, Arrival, SessionState
from durable_swarm.limits import Limits
from durable_swarm.loop import total
from durable_swarm.runs import ENDED
from durable_swarm.streaming import Channel, Item
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.swarm.session import FORK_LATER, Sent, Session, WhenBusy, busy, newest
from durable_swarm.tools.context import calling
from durable_swarm.types import Message, Response, Usage
from durable_swarm.validation import check_name, check_queue


class DurableSession(Session):
    """A conversation in a database. Messages from several processes are answered one after the other."""

    _swarm: RunStarter

    # What it is

    def _state(self) -> SessionState | None:
        """Return the state of the session, after its last run has left what it leaves."""
        opened = self._swarm._open()
        opened.sessions.advance(self.id)
        return opened.store.sessions.look(self.id)

    @property
    def agent(self) -> str:
        state = self._state()
        return self._given_name if state is None else state.agent

    @property
    def _given_name(self) -> str:
        return "" if self._agent is None else str(self._agent.name)

    @property
    def context_variables(self) -> dict[str, Any]:
        state = self._state()
        return dict(self._context) if state is None else self._context_of(state)

    def _context_of(self, state: SessionState) -> dict[str, object]:
        encoded = self._swarm._store().sessions.context(state)
        return {name: codec.decode(value) for name, value in encoded.items()}

    @property
    def usage(self) -> Usage | None:
        state, store = self._state(), self._swarm._store()
        found = [Usage(**counts) for counts in store.sessions.runs.usages(self.id)]
        if state is not None and state.ahead is not None and (now := self._run(state.ahead.run_id).usage) is not None:
            found.append(now)
        return total(found)

    @property
    def created_at(self) -> datetime | None:
        state = self._swarm._store().sessions.look(self.id)
        return None if state is None else moment(state.created_at)

    @property
    def updated_at(self) -> datetime | None:
        state = self._state()
        return None if state is None else moment(state.updated_at)

    def messages(self, limit: int | None = None) -> list[Message]:
        newest([], limit)
        found: list[Message] = []
        for _, messages in newest_first(self._swarm._store(), self.id):
            found[:0] = messages
            if limit is not None and len(found) >= limit:
                break
        return newest(found, limit)

    def runs(self) -> list[Run]:
        """Return the runs in the order of their messages, those that wait for their turn last."""
        found = self._swarm._store().sessions.runs.ids(self.id, states=(BEGUN, LEFT_OUT, WAITS))
        return [self._run(run_id) for _, run_id in reversed(found)]

    def _run(self, run_id: str) -> Run:
        return self._swarm._handle(run_id)

    # Sending

    def start(
        self,
        message: str | Message | list[Message],
        *,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Run:
        """Send a message as `run` does, in the background, and return once its run is recorded.

        With `queue` a worker executes it when its turn has come.
        """
        sent = Sent(
            message,
            run_id,
            when_busy,
            model_override,
            debug,
            max_turns,
            execute_tools,
            True,
            provider_patience,
            limits,
        )
        waits = check_queue(queue, priority)
        if running_loop() is background_loop():
            raise errors.ConfigurationError(
                "start() would stop the event loop on which runs are executed; call `await start_async(...)`"
            )
        joined = self._joined(sent)
        return joined or self._swarm._start(self._prepare(sent, queued=waits, priority=priority))

    async def start_async(
        self,
        message: str | Message | list[Message],
        *,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Run:
        """Start as `start` does, on the running event loop."""
        sent = Sent(
            message,
            run_id,
            when_busy,
            model_override,
            debug,
            max_turns,
            execute_tools,
            True,
            provider_patience,
            limits,
        )
        waits = check_queue(queue, priority)
        self._swarm._open_on_loop()
        joined = await in_thread(self._joined, sent)
        if joined is not None:
            return joined
        prepared = await in_thread(lambda: self._prepare(sent, queued=waits, priority=priority))
        return await self._swarm._start_on_loop(prepared)

    def _respond(self, sent: Sent) -> Response:
        joined = self._joined(sent)
        return self._swarm._respond_to(self._prepare(sent)) if joined is None else joined.result()

    async def _respond_async(self, sent: Sent) -> Response:
        self._swarm._open_on_loop()
        joined = await in_thread(self._joined, sent)
        if joined is not None:
            return await joined.result_async()
        return await self._swarm._respond_to_async(await in_thread(self._prepare, sent))

    def _stream(self, sent: Sent) -> Iterator[Item]:
        joined = self._joined(sent)
        if joined is not None:
            yield from self._swarm._stream_run(joined, Channel())
        else:
            yield from self._swarm._stream_of(self._prepare(sent))

    async def _stream_async(self, sent: Sent) -> AsyncIterator[Item]:
        self._swarm._open_on_loop()
        joined = await in_thread(self._joined, sent)
        if joined is not None:
            items = dictionaries_async(joined, Channel())
        else:
            items = self._swarm._stream_of_async(await in_thread(self._prepare, sent))
        async for item in items:
            yield item

    def _joined(self, sent: Sent) -> Run | None:
        """Give the messages to the run in progress, if that is what to do with them, and return it."""
        if sent.when_busy != "join":
            return None
        state = self._state()
        if state is None or state.ahead is None or state.ahead.over:
            return None
        with contextlib.suppress(HasEnded):  # Just now: the messages are for the next run.
            say_all(self._swarm._store(), state.ahead.run_id, sent.messages)
            return self._run(state.ahead.run_id)
        return None

    def _prepare(self, sent: Sent, *, queued: bool = False, priority: int = 0) -> RunStart:
        """Return the start of the run that answers a message, as the session is now."""
        opened = self._swarm._open()
        state = self._state()
        self._check(state, sent)
        agent = self._next_agent(state)
        context = self._context if state is None else self._context_of(state)
        asked = RunArguments(
            agent, sent.messages, context, sent.model_override, sent.stream, sent.debug, sent.max_turns,
            sent.execute_tools, sent.provider_patience, sent.limits,
        )  # fmt: skip
        place = SessionPlace(self.id, 1) if state is None else SessionPlace(self.id, state.last + 1, state.base)
        prepared = RunStart(
            self._swarm, asked, sent.run_id, queued=queued, session=place, compaction=self._compaction,
            accounts=self._accounts(opened.store.ledger),
        )  # fmt: skip
        arrival = Arrival(
            session=self.id,
            run_id=prepared.run_id,
            swarm=self._swarm.name,
            agent=agent.name,
            context=runs.context_record(prepared.start.context),
            expected=state,
            queue=names.work_queue(self._swarm.name) if queued else opened.queue,
            is_shared=queued,
            priority=priority,
            may_wait=sent.when_busy != "reject",
            belongs_to=prepared.belongs_to,
        )
        prepared.admit = partial(opened.store.sessions.admit, sent=arrival)
        if sent.when_busy == "interrupt":
            self._interrupt(state, prepared.run_id)
        return prepared

    def _accounts(self, ledger: Ledger) -> tuple[Key, ...]:
        """Return the account of the session, from which all its runs spend, if it has limits."""
        key = Key("session", self.id)
        if self._limits is not None:
            ledger.open_for(key, self._limits)
        return () if self._limits is None and ledger.read(key) is None else (key,)

    def _next_agent(self, state: SessionState | None) -> Any:
        """Return the agent that answers the next message: the object, or what stands for one defined elsewhere."""
        if state is None and self._agent is None:
            raise errors.ConfigurationError(
                f"session {self.id!r} is new, so it needs an agent: swarm.session({self.id!r}, agent)"
            )
        if state is None or state.agent == self._given_name:
            return self._agent
        return find_or_none(state.agent) or RemoteAgent(state.agent)

    def _interrupt(self, state: SessionState | None, run_id: str) -> None:
        """Cancel the run in progress before run `run_id`, unless that one was sent already: it did so then."""
        if (
            state is not None
            and state.ahead is not None
            and self._swarm._store().row(run_id, load_output=False) is None
        ):
            self._run(state.ahead.run_id).cancel()

    def _check(self, state: SessionState | None, sent: Sent) -> None:
        """Refuse a message to a session of another swarm, and one that would wait for the run that sends it."""
        if state is None:
            return
        if state.swarm != self._swarm.name:
            raise errors.ConfigurationError(
                f"session {self.id!r} belongs to a swarm named {state.swarm!r}, and this one is named "
                f"{self._swarm.name!r}; choose another id, or give DurableSwarm the name= of that one"
            )
        here = calling()
        if here is None or state.ahead is None or here.call.run_id != state.ahead.run_id:
            return
        if sent.when_busy in ("queue", "interrupt"):
            raise errors.ConfigurationError(
                f"this tool was called by the run in progress of session {self.id!r}, which would wait for its own "
                "end; return the text, or send the message with when_busy='join'"
            )

    # Forks and the end

    def fork(self, id: str, *, run: Run | str | None = None) -> DurableSession:
        name, state, store = check_name("the id of a session", id), self._state(), self._swarm._store()
        if state is None:
            raise errors.ConfigurationError(f"session {self.id!r} has no messages, so there is nothing to fork")
        last, ahead = run.id if isinstance(run, Run) else run, state.ahead
        if last is None and ahead is not None and state.base is None:
            raise busy(self.id, ahead.run_id, FORK_LATER)
        number, left = state.last if ahead is None else ahead.number - 1, None
        if last is not None:
            number = store.sessions.runs.number_of(self.id, last)
            row = store.found(last)
            if state_of(row) not in ENDED:
                raise busy(self.id, last)
            left = left_by(store, row)
        store.sessions.fork(state, name, number, left)
        return DurableSession(self._swarm, name, self._agent, {}, self._limits, self._compaction)

    def delete(self) -> None:
        self._state()
        delete_session(self._swarm._store(), self.id)
