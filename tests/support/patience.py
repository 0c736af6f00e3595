"""How long tests wait for what should happen."""

PATIENCE = 120.0
"""Seconds after which something that should have happened counts as never happening.

Nothing that works waits so long: a shared machine may stand still for some of them.
"""
