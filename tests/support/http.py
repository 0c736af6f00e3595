"""The HTTP library of the installed `openai`: which one it is differs between its releases."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import openai


def _library() -> Any:
    with openai.OpenAI(api_key="unused", base_url="http://127.0.0.1:9") as client:
        kinds = inspect.getmro(type(client._client))
    # The oldest ancestor is Python's `object`; the one before it is the library's own.
    return importlib.import_module(kinds[-2].__module__.partition(".")[0])


httpx = _library()
