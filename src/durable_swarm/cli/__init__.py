"""The command line `durable-swarm`: the composition root, which puts service and demos together."""

from durable_swarm.cli.app import main

__all__ = ["main"]
