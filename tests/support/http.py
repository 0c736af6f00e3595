"""The HTTP library of the installed `openai`: which one it is differs between its releases."""

from __future__ import annotations

import importlib
from typing import Any

import openai

httpx: Any = importlib.import_module(openai.Timeout.__module__.partition(".")[0])
