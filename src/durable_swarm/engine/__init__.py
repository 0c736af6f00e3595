"""`DurableSwarm` over DBOS: the only package that knows it."""

from durable_swarm.engine.durable import DurableSwarm
from durable_swarm.engine.run import Run

__all__ = ["DurableSwarm", "Run"]
