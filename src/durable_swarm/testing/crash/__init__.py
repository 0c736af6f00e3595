"""Crash tests for agent programs: kill the program at every durable boundary, start it again, and compare.

`crash_test(scenario)` runs a function of yours once undisturbed, then once for each boundary and each side of it in a
fresh process that is killed there with SIGKILL and started again. Your tools report their effects on the world with
`effect`; the report states in words which effects were lost, repeated or different.
"""

from durable_swarm.testing.crash.ledger import effect
from durable_swarm.testing.crash.report import CrashReport, CrashTestFailed, Finding
from durable_swarm.testing.crash.runner import crash_test

__all__ = ["CrashReport", "CrashTestFailed", "Finding", "crash_test", "effect"]
