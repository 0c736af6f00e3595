"""Stored data as plain records: names, encoding, decoding. No I/O, no threads."""
