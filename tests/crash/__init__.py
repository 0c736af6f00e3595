"""Crash tests: real processes, really killed, and what the next life makes of what they left."""
