"""What the server of lives imports and does once, so that no life has to."""

from __future__ import annotations

import openai

import durable_swarm
import durable_swarm.testing
import tests.crash.disk
import tests.crash.lives
import tests.crash.scenarios
import tests.support.warm

__all__ = ["durable_swarm", "openai", "tests"]
