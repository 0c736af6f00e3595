"""The two ways to wait, and the threads and the loop behind them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm.awaitables import is_async
from durable_swarm.background import background_loop, threads
from durable_swarm.concurrency import (
    BlockingRuntime,
    CallerThreadExecutor,
    Interrupted,
    LoopRuntime,
    beside,
    finish,
    in_thread,
)
from tests.support.patience import PATIENCE

LABEL: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="none")


def plain(number: int = 1) -> int:
    """Give a number, plainly."""
    return number + 1


async def coroutine(number: int = 1) -> int:
    """Give a number after a turn of the loop."""
    await asyncio.sleep(0)
    return number + 1


class PlainCall:
    """An object with a plain call."""

    def __call__(self, number: int = 1) -> int:
        return number + 1


class AsyncCall:
    """An object with an async call."""

    async def __call__(self, number: int = 1) -> int:
        await asyncio.sleep(0)
        return number + 1


FUNCTIONS: dict[str, tuple[Callable[..., Any], bool]] = {
    "function": (plain, False),
    "coroutine function": (coroutine, True),
    "partial": (functools.partial(plain, 1), False),
    "partial of a coroutine function": (functools.partial(functools.partial(coroutine), 1), True),
    "callable object": (PlainCall(), False),
    "async callable object": (AsyncCall(), True),
    "lambda that gives a coroutine": (lambda: coroutine(1), False),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_any_function_is_called_either_way(kind: str) -> None:
    """Plain functions and coroutine functions of every shape give their result on both ways to wait."""
    function, asynchronous = FUNCTIONS[kind]
    assert is_async(function) is asynchronous
    assert finish(BlockingRuntime().call(function)) == 2
    assert asyncio.run(LoopRuntime().call(function)) == 2


def fail() -> None:
    """Raise, plainly."""
    raise LookupError("plain")


async def fail_later() -> None:
    """Raise after a turn of the loop."""
    await asyncio.sleep(0)
    raise LookupError("later")


@pytest.mark.parametrize("function", [fail, fail_later])
def test_exceptions_come_through(function: Any) -> None:
    """What a function raises is raised where it was called, as it is."""
    with pytest.raises(LookupError):
        finish(BlockingRuntime().call(function))
    with pytest.raises(LookupError):
        asyncio.run(LoopRuntime().call(function))


def test_sleeping_takes_its_time() -> None:
    """Both ways to wait let the time pass."""
    begin = time.monotonic()
    finish(BlockingRuntime().sleep(0.02))
    asyncio.run(LoopRuntime().sleep(0.02))
    assert time.monotonic() - begin >= 0.04


def test_finish_refuses_a_coroutine_that_waits() -> None:
    """A coroutine that suspends is not made for `finish`, which says so and leaves nothing open."""
    with pytest.raises(RuntimeError, match="may not suspend"):
        finish(coroutine())


def test_plain_functions_stay_in_the_calling_thread() -> None:
    """In a blocked thread plain functions run in that very thread, also where a batch runs beside it."""
    here = threading.get_ident()
    assert finish(BlockingRuntime().call(threading.get_ident)) == here

    async def batch(waits: Any) -> list[int]:
        return list(await asyncio.gather(*(waits.call(threading.get_ident) for _ in range(3))))

    assert beside(batch) == [here] * 3


def test_plain_functions_leave_the_loop() -> None:
    """On a loop plain functions run in a thread, in the context of their caller."""

    async def main() -> tuple[int, str]:
        LABEL.set("mine")
        waits = LoopRuntime()
        return await waits.call(threading.get_ident), await waits.call(LABEL.get)

    thread, label = asyncio.run(main())
    assert thread != threading.get_ident()
    assert label == "mine"


def test_the_context_of_the_caller_reaches_the_background_loop() -> None:
    """Work on the background loop sees the context variables of the thread that waits for it."""
    token = LABEL.set("outer")

    async def read(waits: Any) -> list[str]:
        return [LABEL.get(), await waits.call(LABEL.get)]

    try:
        assert beside(read) == ["outer", "outer"]
    finally:
        LABEL.reset(token)


def test_the_background_loop_is_one() -> None:
    """A process has one background loop, in a daemon thread."""
    loops = {id(background_loop()) for _ in range(3)}
    assert len(loops) == 1
    [thread] = [thread for thread in threading.enumerate() if thread.name == "durable-swarm-loop"]
    assert thread.daemon


def test_a_home_serves_one_call_at_a_time() -> None:
    """A thread that serves makes the first call that comes in, in order, and gives up when time is up."""
    home = CallerThreadExecutor()
    done = [home.submit(plain, number) for number in range(2)]
    home.serve(30)
    assert (done[0].result(0), done[1].done()) == (1, False)
    home.serve(30)
    assert done[1].result(0) == 2
    begin = time.monotonic()
    home.serve(0.05)
    assert time.monotonic() - begin >= 0.05


def test_an_exception_in_a_home_stays_with_its_call() -> None:
    """A call that raises, whatever it raises, gives that to whoever waits for it and leaves the home serving."""
    home = CallerThreadExecutor()

    def leave() -> None:
        raise SystemExit(4)

    broken, left, sound = home.submit(fail), home.submit(leave), home.submit(plain)
    for _ in range(3):
        home.serve(5)
    assert isinstance(broken.exception(0), LookupError)
    assert isinstance(left.exception(0), SystemExit)
    assert sound.result(0) == 2


def test_ctrl_c_in_a_home_reaches_the_thread_that_waits() -> None:
    """KeyboardInterrupt ends the waiting thread's call too, as in a plain program, and no event loop."""
    home = CallerThreadExecutor()

    def interrupt() -> None:
        raise KeyboardInterrupt

    future = home.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        home.serve(5)
    assert isinstance(future.exception(0), Interrupted)


def test_a_cancelled_call_is_not_made() -> None:
    """A call that was given up before its turn is passed over."""
    home = CallerThreadExecutor()
    made: list[int] = []
    home.submit(made.append, 1).cancel()
    home.serve(5)
    assert made == []


def test_a_thread_that_leaves_hands_its_calls_over() -> None:
    """Calls that a thread did not come to before it left, and calls that come later, are made in other threads."""
    with CallerThreadExecutor() as home:
        waiting = home.submit(threading.get_ident)
    later = home.submit(threading.get_ident)
    assert waiting.result(PATIENCE) != threading.get_ident()
    assert later.result(PATIENCE) != threading.get_ident()


def test_in_thread_keeps_the_context() -> None:
    """`in_thread` runs a function in a thread of ours, in the caller's context."""

    async def main() -> tuple[str, str]:
        LABEL.set("asked")
        return await in_thread(LABEL.get), await in_thread(lambda: threading.current_thread().name)

    label, name = asyncio.run(main())
    assert label == "asked"
    assert name.startswith("durable-swarm-")
    assert threads() is threads()
