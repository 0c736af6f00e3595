"""The crash kit, tried on agents with planted faults and on agents that are right."""
