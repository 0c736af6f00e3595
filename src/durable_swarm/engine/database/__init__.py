"""Connections, locks, dialects, and what an error of a database means. Knows no table."""
