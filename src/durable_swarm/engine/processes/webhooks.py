"""Tells webhooks what happens in the runs of the swarms of this process, in a thread of its own.

Every process of a swarm with webhooks looks, so a message is sent as long as one of them lives.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.records.runs import read_end
from durable_swarm.engine.storage.deliveries import OPENED, Delivery
from durable_swarm.engine.storage.run_state import moment, notes_on, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import DurableSwarmError, RunNotFound
from durable_swarm.webhooks import Undelivered, Webhook

log = logging.getLogger("durable_swarm")

EVERY = 1.0
"""Seconds between looks."""
SWEPT = 3600.0
"""Seconds between looks for what may be deleted."""
LAST = 5.0
"""Seconds for which closing waits for messages that are being sent."""
AT_ONCE = 8
"""How many messages are sent at once: a receiver that says nothing keeps no other one waiting."""


class WebhookSender:
    """Sends messages, from the first look at swarms that have webhooks until it is closed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hooks: dict[tuple[str, str], Webhook] = {}
        """By the name of the swarm, and the address."""
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._swept = 0.0

    def begin(self, swarm: Settings) -> None:
        """Send what happens in the runs of a swarm from now on, if it has webhooks."""
        for hook in swarm.webhooks:
            self._store.deliveries.begin(hook.url, swarm.name)
            self._hooks[swarm.name, hook.url] = hook
        if swarm.webhooks and self._thread is None:
            self._pool = ThreadPoolExecutor(AT_ONCE, "durable-swarm-webhook")
            self._thread = threading.Thread(target=self._work, name="durable-swarm-webhooks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what is due, for a short time: a program that runs once and ends has reported it.

        A message in progress may come twice; its receiver knows it by its id.
        """
        self._closed.set()
        if self._thread is None or self._pool is None:
            return
        self._thread.join()
        with contextlib.suppress(SQLAlchemyError, DurableSwarmError):
            wait(self._tell(), LAST)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        while not self._closed.wait(EVERY):
            try:
                self._tell()
            except (SQLAlchemyError, DurableSwarmError) as error:
                log.debug("webhooks: %s", error)  # Reported where the database is used; the next look may succeed.

    def _tell(self) -> list[Future[None]]:
        """Note what is to be told, and send what is due; return what is being sent."""
        for (swarm, url), hook in list(self._hooks.items()):
            self._store.deliveries.collect(url, swarm, list(hook.events))
        hooks = {url: hook for (_, url), hook in list(self._hooks.items())}
        if self._pool is None:
            return []
        taken = self._store.deliveries.take(list(hooks), AT_ONCE)
        sent = [self._pool.submit(self._send, hooks[one.url], one) for one in taken]
        if time.monotonic() > self._swept + SWEPT:
            self._swept = time.monotonic()
            self._store.deliveries.sweep()
        return sent

    def _send(self, hook: Webhook, one: Delivery) -> None:
        try:
            try:
                hook.send(one.id, int(time.time()), message(self._store, one))
            except RunNotFound:
                self._store.deliveries.failed(one, "the run was deleted", final=True)
            except Undelivered as error:
                self._store.deliveries.failed(one, str(error), final=error.final)
                log.info("webhook %s did not take %s of run %r: %s", hook.url, one.event, one.run_id, error)
            else:
                self._store.deliveries.delivered(one)
        except (SQLAlchemyError, DurableSwarmError) as error:  # It is sent again, under the same id.
            log.debug("webhooks: %s", error)


def message(store: Store, one: Delivery) -> bytes:
    """Return the body of a message, the same at each try. Raises `RunNotFound`."""
    row = store.found(one.run_id)
    noted = notes_on(row)
    data: dict[str, object] = {"run_id": one.run_id, "agent": noted.get("agent", ""), "swarm": noted.get("swarm", "")}
    data |= {"session": noted.get("session")}
    if one.event == OPENED:
        asked = store.inbox.found(one.subject)
        data |= {"request_id": asked.id, "kind": asked.kind, "question": asked.question, "tool": asked.tool}
        data |= {"arguments": asked.arguments, "choices": asked.choices}
    else:
        failure = store.failure_record(row) if state_of(row) == "failed" else None
        data |= {"status": one.event.removeprefix("run.").replace("finished", "done")}
        data |= {"ended_by": read_end(row.output), "error_type": None if failure is None else failure["type"]}
    message = {"type": one.event, "timestamp": moment(one.at).isoformat(), "data": data}
    return json.dumps(message, default=str).encode()
