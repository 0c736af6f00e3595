"""Puts the requests of a run of `run_demo_loop` to the user at the terminal, while the run waits."""

from __future__ import annotations

import shlex
import threading
from types import TracebackType
from typing import Protocol, Self

from durable_swarm.credentials import without_secrets
from durable_swarm.display import as_call, harmless, one_line
from durable_swarm.errors import DurableSwarmError, safe_text
from durable_swarm.requests import TOKEN, Request

LOOK = 0.2
"""Seconds between checks for requests."""

YES = ("y", "yes")


class AnswersRequests(Protocol):
    """Both swarms: the requests of runs, and the methods that answer them."""

    def requests(self) -> list[Request]:
        """Return the open requests."""

    def answer(self, value: object, request_id: str, *, by: str | None = None) -> None:
        """Answer one."""

    def approve(self, request_id: str, *, by: str | None = None) -> None:
        """Approve one."""

    def reject(self, reason: str, request_id: str, *, by: str | None = None) -> None:
        """Reject one."""


class RequestPrompts:
    """Puts a run's requests to the terminal, in a thread of its own, while the `with` block runs."""

    def __init__(self, swarm: AnswersRequests, run_id: str) -> None:
        self._swarm = swarm
        self._run_id = run_id
        self._over = threading.Event()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="durable-swarm-attendant", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None or issubclass(kind, Exception):
            # Two readers of one terminal would each get half of the input, so a question that is no longer open is
            # still answered with Enter. After Ctrl+C nothing is typed.
            self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(LOOK):
            try:
                for request in self._swarm.requests():
                    if request.run_id == self._run_id and request.id not in self._told:
                        self._ask(request)
            except EOFError:
                return
            except DurableSwarmError as error:
                print(f"\033[91m{one_line(without_secrets(safe_text(error)))}\033[0m", flush=True)

    def _ask(self, request: Request) -> None:
        print(f"\033[93m{harmless(request.question)}\033[0m", flush=True)
        match request.kind:
            case "question":
                choices = f" ({one_line(', '.join(request.choices))})" if request.choices else ""
                self._swarm.answer(input(f"Answer{choices}: "), request.id)
            case "approval":
                self._approve(request)
            case "unknown_outcome":
                self._say_what_became(request)
            case _:
                self._told.add(request.id)
                token = one_line(shlex.quote(request.id.removeprefix(TOKEN)))
                print(f"Post it with: durable-swarm complete {token} RESULT", flush=True)

    def _approve(self, request: Request) -> None:
        if request.same_as is not None:
            print(f"\033[93mThis is the same call as step {request.same_as}.\033[0m", flush=True)
        if input(f"{one_line(as_call(request.tool, request.arguments or {}))}? [y/N] ").strip().lower() in YES:
            self._swarm.approve(request.id)
        else:
            self._swarm.reject("", request.id)

    def _say_what_became(self, request: Request) -> None:
        said = input("Its result, or 'repeat', or 'failed': ").strip()
        if said == "repeat":
            self._swarm.approve(request.id)
        elif said == "failed":
            self._swarm.reject("", request.id)
        elif said:
            self._swarm.answer(said, request.id)
