"""The engine: `DurableSwarm` over real databases and real processes."""
