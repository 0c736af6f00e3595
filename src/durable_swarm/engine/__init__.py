"""`DurableSwarm` over DBOS: the only package that knows it."""

from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.api.run import Run

__all__ = ["DurableSwarm", "Run"]
