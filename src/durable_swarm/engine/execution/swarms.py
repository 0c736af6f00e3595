"""The swarms of this process, and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from durable_swarm import errors
from durable_swarm.codec import Codec
from durable_swarm.engine.storage.schedules import ScheduleRow
from durable_swarm.limits import Limits
from durable_swarm.models.client import Clients
from durable_swarm.models.prices import Prices
from durable_swarm.types import AgentLike, Response
from durable_swarm.validation import check_rate, check_whole
from durable_swarm.webhooks import Webhook


class Settings(Protocol):
    """The settings of a `DurableSwarm` that its runs need."""

    clients: Clients
    tool_concurrency: int
    tool_errors: str
    tool_database: str | None
    keep_for: float | None
    model_rates: Mapping[str, tuple[int, float]]
    name: str
    codec: Codec | None
    changed_agents: str
    default_model: str | None
    provider_patience: float
    limits: Limits | None
    prices: Prices | None
    webhooks: Sequence[Webhook]

    def begin_occurrence(self, row: ScheduleRow, at: datetime) -> None:
        """Record the run of a time of a schedule, unless it is recorded."""

    async def run_child(
        self, agent: AgentLike, message: str, context_variables: dict[str, Any], limits: Limits | None = None
    ) -> Response:
        """Run the agent as a child run of the tool call in progress."""


@dataclass(frozen=True)
class QueueLimits:
    """Limits of the execution of queued runs. Raises `ConfigurationError`."""

    concurrency: int = 10
    """In this process at once."""
    queue_concurrency: int | None = None
    """In all workers of the queue at once."""
    rate: tuple[int, float] | None = None
    """How many begin, in all workers, within how many seconds."""

    def __post_init__(self) -> None:
        check_whole("concurrency", self.concurrency, 1)
        if self.queue_concurrency is not None:
            check_whole("queue_concurrency", self.queue_concurrency, 1)
        if self.rate is not None:
            check_rate("rate", self.rate, "runs")


class Swarms(list[Settings]):
    """The swarms that are open in this process, oldest first."""

    def named(self, name: str) -> Settings | None:
        """Return the newest open swarm of that name."""
        return next((swarm for swarm in reversed(self) if swarm.name == name), None)

    def codec_for(self, name: str) -> Codec | None:
        """Return the codec of the swarm of that name; for a swarm that is not open here, the newest codec in use."""
        named = self.named(name)
        if named is not None:
            return named.codec
        return next((swarm.codec for swarm in reversed(self) if swarm.codec is not None), None)

    def admit(self, swarm: Settings) -> None:
        """Register `swarm`. Raises `ConfigurationError` if an open swarm of its name has another codec."""
        if any(other.name == swarm.name and other.codec != swarm.codec for other in self):
            named = f"named {swarm.name!r}" if swarm.name else "without a name"
            raise errors.ConfigurationError(
                f"a DurableSwarm {named} is open in this process with another codec; give both the same codec, or each "
                "a name= of its own"
            )
        self.append(swarm)
