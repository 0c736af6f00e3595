"""`Swarm`: runs in memory, and what it shares with the durable swarm."""
