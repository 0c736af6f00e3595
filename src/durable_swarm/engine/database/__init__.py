"""Connections, locks, dialects, and the meaning of database errors. Knows no table."""
