"""Tries the mutants one after the other; see the package."""

from __future__ import annotations

import argparse
import sys
import time

from faults.mutants import MUTANTS, is_red


def main() -> int:
    """Try the mutants and print what came of each."""
    parser = argparse.ArgumentParser(description="Break the engine in one place after the other; a test must notice.")
    parser.add_argument("names", nargs="*", help="the mutants to try; all by default")
    wanted = parser.parse_args().names
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    green = 0
    for mutant in chosen:
        began = time.monotonic()
        red = is_red(mutant)
        green += not red
        print(
            f"{'red' if red else 'GREEN':6}{mutant.name:30}{mutant.promise} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    print(f"{len(chosen) - green} of {len(chosen)} mutants are red")
    return 1 if green or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
