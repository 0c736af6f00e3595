"""Which process executes which run: identity, recovery, workers, maintenance, the registered workflows."""
