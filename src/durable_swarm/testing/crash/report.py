"""The report of a crash test, in words for the author of the agent."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from durable_swarm.testing.crash.boundaries import Death, Instant, KillPoint
from durable_swarm.testing.crash.outcome import Difference

ADVICE = {
    "repeated effect": "give the service current_call().idempotency_key and the effect the same `key`, so that a "
    "repeated call is recognised",
    "another key": "the key must be the same in every attempt: use current_call().idempotency_key, nothing made of "
    "time, chance or the process",
    "lost effect": "it must happen inside the tool, before the tool returns, and not in a thread, a buffer or after a "
    "mark that says it is done",
    "another run": "the restarted program began a new run: give the run a run_id",
    "lost run": "the restarted program never started it again",
    "not ended": "the restarted program must define the same agents under the same names",
    "agent": "agents are found by name: give them the same names in every process",
    "messages": "a tool or a prompt depends on time, chance or memory: put what varies into a @step",
    "context": "a crash loses globals and attributes: keep state in context_variables",
    "steps": "a tool must take the same steps in every life: put what it decides by into a @step",
    "status": "",
    "value": "what it returns depends on time, chance or memory",
    "raised": "",
    "hung": "",
    "missed": "the scenario must pass the same boundaries in each process",
}


@dataclass(frozen=True)
class Finding:
    """One fault: the difference, the time of the kill, and the remedy.

    `kind` is a key of `ADVICE`; `tool` the tool that it concerns, if any; `case` names the boundary.
    """

    kind: str
    text: str
    tool: str | None
    when: str
    advice: str
    case: str

    def __str__(self) -> str:
        return f"{self.text} {self.when}{'; ' + self.advice if self.advice else ''} [{self.case}]"


@dataclass(frozen=True)
class CrashReport:
    """The result of a crash test.

    `boundaries` are the durable boundaries of the undisturbed program, `cases` how often it was killed and started
    again, `kills` the number of processes killed. A program that differs from itself undisturbed is not killed at all:
    its findings are those differences.
    """

    scenario: str
    boundaries: tuple[str, ...]
    findings: list[Finding]
    cases: int = 0
    kills: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    def check(self) -> None:
        """Raise `CrashTestFailed` if anything was found."""
        __tracebackhide__ = True
        if not self.ok:
            raise CrashTestFailed(self)

    def __str__(self) -> str:
        counts = [_count(len(self.boundaries), "boundary"), _count(self.cases, "case"), _count(self.kills, "process")]
        head = f"crash test of {self.scenario}: {', '.join(counts)} killed in {self.seconds:.0f} s, "
        found = f"{_count(len(self.findings), 'finding')}\n" + "\n".join(self._lines())
        return head + ("nothing differs" if self.ok else found)

    def _lines(self) -> list[str]:
        """Return each finding once, with the number of cases that show it."""
        shown: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            shown.setdefault((finding.kind, finding.tool or finding.text), []).append(finding)
        texts = [f"{found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "") for found in shown.values()]
        return [textwrap.fill(text, 110, initial_indent="- ", subsequent_indent="  ") for text in texts]


class CrashTestFailed(AssertionError):
    """A crash test found something; `report` is the `CrashReport`, the message its text."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(str(report))
        self.report = report


def _count(number: int, noun: str) -> str:
    plural = {"boundary": "boundaries", "process": "processes"}.get(noun, f"{noun}s")
    return f"{number} {noun if number == 1 else plural}"


def finding(difference: Difference, deaths: Sequence[Death], boundaries: Sequence[Sequence[str]]) -> Finding:
    """Describe a difference; `boundaries` are those of each execution without its kill."""
    case = ", then ".join(_where(death, passed) for death, passed in zip(deaths, boundaries, strict=True))
    when = f"when killed {_when(difference, deaths[0], boundaries[0]) if len(deaths) == 1 else case}"
    return Finding(difference.kind, difference.text, difference.tool, when, ADVICE[difference.kind], case)


def undisturbed(found: Iterable[Difference]) -> list[Finding]:
    """Describe a difference between two undisturbed executions."""
    advice = "a crash test compares lives: what depends on time, chance or the process must be the same in each"
    return [
        Finding(difference.kind, difference.text, difference.tool, "when it is run twice", advice, "undisturbed")
        for difference in found
    ]


def _when(difference: Difference, death: Death, boundaries: Sequence[str]) -> str:
    if not isinstance(death, KillPoint):
        return _where(death, boundaries)
    label = boundaries[death.number - 1]
    after_effect = death.side == "after" and label.startswith("effect ")
    before_checkpoint = death.side == "before" and re.match(r"checkpoint of (?:tool|step) ", label)
    if difference.kind in ("repeated effect", "another key") and (after_effect or before_checkpoint):
        return "after its effect and before its checkpoint"
    return f"{death.side} the {label}"


def _where(death: Death, boundaries: Sequence[str]) -> str:
    if isinstance(death, Instant):
        return f"{death.seconds * 1000:.1f} ms after boundary {death.number} ({boundaries[death.number - 1]})"
    return f"{death.side} boundary {death.number} ({boundaries[death.number - 1]})"
