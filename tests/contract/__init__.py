"""One behavioural suite over `Swarm` and `DurableSwarm`: what both promise, in both their faces."""
