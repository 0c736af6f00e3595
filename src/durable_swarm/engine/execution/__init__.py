"""One run while it executes here."""
