"""Packages whose public names are imported at their first use, so that a program pays only for what it uses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def at_first_use(
    package: str, homes: Mapping[str, Collection[str]], modules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package.

    `homes` are the package's names by the modules that define them, `modules` those of its modules that are public.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return vars(sys.modules[package]).setdefault(name, getattr(importlib.import_module(home_of[name]), name))

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return find, listed
