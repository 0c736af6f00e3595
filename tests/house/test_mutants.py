"""The wrong engines of `faults/mutants/` can still be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.mutants import MUTANTS, ROOT, SOURCE, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.name))
def test_a_mutant_has_its_place(mutant: Mutant) -> None:
    """What a mutant breaks stands once in its file, and the tests that must notice are there."""
    assert (SOURCE / mutant.file).read_text().count(mutant.right) == 1
    for test in mutant.tests:
        assert (ROOT / Path(test.partition("::")[0])).exists()
