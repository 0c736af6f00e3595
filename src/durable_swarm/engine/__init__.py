"""`DurableSwarm` over DBOS: the only package that knows it."""
