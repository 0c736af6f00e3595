"""Wrong engines: each mutant breaks one promise in one place, and a test of the ordinary suite must turn red.

    python -m faults.mutants              all of them, about six minutes on two cores
    python -m faults.mutants late-ids     some of them

Prints a line for each and ends with 1 if a mutant stays green, or if the place it breaks is not there any more.
"""

from __future__ import annotations

from faults.mutants.executed import EXECUTED
from faults.mutants.mutant import ROOT, SOURCE, Mutant, is_red
from faults.mutants.written import WRITTEN

MUTANTS = [*EXECUTED, *WRITTEN]

__all__ = ["MUTANTS", "ROOT", "SOURCE", "Mutant", "is_red"]
