"""Faults: of the machine under a SQLite file, of processes, connections and servers; and wrong engines.

`python -m faults.disk` has calls that fail, writes that are torn and power that is lost (Linux with a C compiler only);
`faults.kills` kills at random instants; `faults.nemesis` has storms of all faults over mixed runs; `faults.mutants`
breaks the engine. Each has a short form among the tests.
"""
