"""Storms for `faults/nemesis.py`: mixed agents under random faults, a ledger outside the database, and an auditor.

`program` has the agents and their model, `lives` the processes, `people` those who decide, cancel, resume and read,
`storm` the faults, `audit` the judgement. Everything goes through the public API.
"""
