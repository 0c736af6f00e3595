"""One run while this process executes it."""
