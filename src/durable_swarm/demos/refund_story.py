"""What the refund demo shows of its run: what was done before a crash, and when everything happened."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from durable_swarm.display import duration
from durable_swarm.service import RunDetail, Timeline, timeline

STEP = "refund_step"
"""The name of a recorded step of the refund."""
BEFORE = "before the crash"
WIDTH = 56
"""The number of characters of the timeline."""


def done_before(run: RunDetail) -> Iterator[str]:
    """Yield what a run has done, in words: handoffs, steps and finished tools."""
    number = 0
    for info in run.steps:
        name = info.name.partition(":")[2] or info.name
        if info.status != "done" or info.kind == "model":
            continue
        if info.name == STEP:
            number += 1
            yield f"step {number} of the refund"
        else:
            yield {"transfer_to_refunds": "Triage Agent → Refunds Agent"}.get(name, name)


def print_time(run: RunDetail) -> None:
    """Print when the models and the tools of a run worked, and where a process died, in three lines."""
    found = timeline(run.steps, run.updated_at, run.executions)
    if not found.bars:
        return
    console = Console(highlight=False)
    total = duration(sum(stretch.seconds for stretch in found.stretches))
    console.print(f"\n{'Its time':9}0 s{total:>{WIDTH - 3}}", style="bright_black")
    inner = {info.number for info in run.steps if info.kind == "step"}
    models = {info.number for info in run.steps if info.kind == "model"}
    tools = {info.number for info in run.steps} - inner - models
    for name, numbers, style in (("models", models, "bright_blue"), ("tools", tools, "bright_magenta")):
        line = Text(f"{name:9}").append("".join(_cells(found, numbers)), style)
        for at in found.crashes:
            place = 9 + min(int(at * WIDTH), WIDTH - 1)
            line = Text.assemble(line[:place], ("✕", "bold red"), line[place + 1 :])
        if found.crashes and name == "tools":
            line.append("   ✕ the process died", "red")
        console.print(line, soft_wrap=True)


def _cells(found: Timeline, numbers: set[int]) -> list[str]:
    cells = [" "] * WIDTH
    for bar in found.bars:
        if bar.number in numbers:
            first = min(int(bar.at * WIDTH), WIDTH - 1)
            last = max(round((bar.at + bar.width) * WIDTH), first + 1)
            cells[first:last] = "█" * (min(last, WIDTH) - first)
    return cells
