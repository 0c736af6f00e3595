"""References inside a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping


def referred(schema: Mapping[str, object], reference: str) -> object:
    """Return what a reference such as `#/$defs/Seat` leads to in the schema itself, or None; nothing is fetched."""
    if reference == "#":
        return schema
    node: object = schema
    if not reference.startswith("#/"):
        return None
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            return None
    return node
