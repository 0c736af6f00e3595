"""The command line `durable-swarm`: the composition root, which combines service and demos."""

from durable_swarm.cli.app import main

__all__ = ["main"]
