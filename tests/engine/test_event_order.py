"""Whatever happens in a run, in whatever order: all its readers are told the same."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.crash.matrix import LONG
from tests.engine.event_world import Plan, World

MANY = settings(max_examples=20_000 if LONG else 400, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PLANS = st.lists(st.builds(Plan, st.integers(1, 3), st.booleans(), st.none() | st.integers(0, 2)), max_size=3).map(
    lambda plans: [*plans, Plan()]
)
STREAMING = ["piece"] * 6 + ["reset", "begin", "end", "write", "write", "read", "reply", "emit", "emit", "finish"]
DEEDS = [*STREAMING, "late", "crash", "crash", "fail", "cancel"]

Deeds = list[tuple[str, int]]


@MANY
@given(PLANS, st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 59)), max_size=60))
def test_all_readers_of_a_run_are_told_the_same(plans: list[Plan], deeds: Deeds) -> None:
    """Whatever is streamed, written, lost, repeated, ended and resumed, all readers are told the same."""
    world = World(plans)
    for deed, which in deeds:
        world.do(deed, which)
    world.finish()


def several(text: str) -> Deeds:
    """Read deeds: words, each with its number where it is not 0."""
    return [(word.rstrip("0123456789"), int(word.lstrip("abcdefghijklmnopqrstuvwxyz") or 0)) for word in text.split()]


ONE, TWO = [Plan(1), Plan()], [Plan(2, together=True), Plan()]
HISTORIES = {
    "a row that could not be written is tried again after the run has failed": ([Plan()], "piece2 write piece2 fail1"),
    "a row that seemed lost was stored, and its last piece goes on": (
        [Plan()],
        "piece piece begin end3 read piece piece write",
    ),
    "a row that seemed lost was stored, and the reply ends": ([Plan()], "piece piece begin end3 read piece reply"),
    "progress that seemed lost was stored, and more comes": (ONE, "reply emit begin end3 read emit write read"),
    "a run fails with a number lost before what is recorded": (TWO, "reply emit finish1 crash fail"),
    "more numbers were lost than are needed": (
        TWO,
        "reply emit emit emit emit finish1 crash finish finish piece write piece piece piece write piece piece write",
    ),
    "a call emits before its sibling's record is read": (TWO, "reply finish1 crash emit finish1 write"),
    "a call emits after its end": (ONE, "reply finish late write read"),
    "a call fails with progress not stored": (TWO, "reply emit emit1 fail1 finish"),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_what_once_was_told_in_two_ways(history: str) -> None:
    """Each of these histories is told alike to all its readers."""
    plans, deeds = HISTORIES[history]
    world = World(plans)
    for deed, which in several(deeds):
        world.do(deed, which)
    world.finish()
