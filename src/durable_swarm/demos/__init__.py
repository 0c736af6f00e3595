"""Programs that show what the package does: `durable-swarm demo NAME` runs them."""
