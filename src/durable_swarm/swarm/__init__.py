"""`Swarm`: runs in memory, and the parts it shares with the durable swarm."""
