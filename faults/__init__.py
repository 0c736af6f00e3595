"""Faults of the machine under a SQLite file: calls that fail, writes that are torn, power that is lost.

`python -m faults.disk` is the long form; `tests/crash/test_disk.py` the short one. Linux with a C compiler only.
"""
