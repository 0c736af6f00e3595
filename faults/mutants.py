"""Wrong engines: each mutant breaks one promise in one place, and a test of the ordinary suite must turn red.

    python -m faults.mutants              all of them, about six minutes on two cores
    python -m faults.mutants late-ids     some of them

Prints a line for each and ends with 1 if a mutant stays green, or if the place it breaks is not there any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import durable_swarm

SOURCE = Path(durable_swarm.__file__).parent
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A change of one place: in `file`, `right` becomes `wrong`; `tests` are the tests that must notice."""

    name: str
    promise: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


MATRIX = "tests/crash/test_matrix.py::test_a_run_survives_a_kill_at_every_boundary"

MUTANTS = [
    Mutant(
        "late-ids",
        "step numbers follow the model's order, not the order in which calls get their turn",
        "engine/execution/colours.py",
        "        return self.seal.open(await self.start_child(key)",
        """        import asyncio
        import random

        await asyncio.sleep(random.random() / 50)
        return self.seal.open(await self.start_child(key)""",
        (f"{MATRIX}[together_async]",),
    ),
    Mutant(
        "key-of-the-attempt",
        "the idempotency key is the same in every attempt",
        "engine/execution/tool_call.py",
        "self.made.attempt, self.key)",
        'self.made.attempt, f"{self.key}#{self.made.attempt}")',
        (f"{MATRIX}[five_steps]",),
    ),
    Mutant(
        "silent-repetition",
        "a tool is told that its call is repeated",
        "engine/execution/performer.py",
        "attempt = 2 if self.run.recovered and self.replayed else 1",
        "attempt = 1",
        (f"{MATRIX}[five_steps]",),
    ),
    Mutant(
        "context-in-place",
        "what a tool changed in its context is recorded, not remembered",
        "tools/changes.py",
        "return replace(outcome, changed=changed, removed=[key for key in self.before if key not in context])",
        "return replace(outcome, changed={}, removed=[])",
        ("tests/contract/test_context.py",),
    ),
    Mutant(
        "shared-context",
        "a tool gets a private copy of the context, the same before and after a crash",
        "tools/changes.py",
        "return Change(before, is_stored), {key: _copy(form) for key, form in before.items()}",
        "return Change(before, is_stored), context",
        ("tests/contract/test_changes.py",),
    ),
    Mutant(
        "errors-become-results",
        "a tool's exception is no result of its step: a repaired program repeats it",
        "engine/signals.py",
        "class StepFailed(BaseException)",
        "class StepFailed(Exception)",
        ("tests/crash/test_resume.py", "tests/engine/test_failures.py"),
    ),
    Mutant(
        "swallowed-signals",
        "an engine's trouble is not something a tool can catch",
        "engine/signals.py",
        "class RunHeld(BaseException)",
        "class RunHeld(Exception)",
        ("tests/engine/test_failures.py", "tests/engine/test_run_ends.py", "tests/engine/test_bad_tools.py"),
    ),
    Mutant(
        "failure-to-record-is-failure",
        "a success that cannot be recorded is no failure of the run",
        "engine/backend/steps.py",
        'if status == "ERROR" and not isinstance(reason, Broken):',
        "if False:",
        ("tests/engine/test_internals.py",),
    ),
    Mutant(
        "one-name-for-all",
        "each process has a name of its own",
        "engine/processes/identity.py",
        'f"process-{uuid.uuid4()}"',
        '"local"',
        ("tests/engine/test_identity.py", "tests/crash/test_processes.py"),
    ),
    Mutant(
        "everybody-is-dead",
        "the runs of a living process are not taken over",
        "engine/processes/identity.py",
        "        free = self._locks.take(name)\n        if free:\n            self._locks.give(name)",
        "        return True",
        ("tests/engine/test_identity.py", "tests/crash/test_processes.py"),
    ),
    Mutant(
        "pickle-is-read",
        "nothing from the database is unpickled",
        "engine/backend/patches.py",
        "if _owns_dbos or _refusing.get():",
        "if False:",
        ("tests/engine/test_pickle.py",),
    ),
    Mutant(
        "commits-not-on-disk",
        "a commit that was reported is on disk",
        "engine/database/connection.py",
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=OFF",
        ("tests/engine/test_database.py",),
    ),
    Mutant(
        "readable-by-all",
        "the database is the user's alone",
        "engine/database/connection.py",
        "os.O_RDWR | os.O_CREAT, 0o600",
        "os.O_RDWR | os.O_CREAT, 0o644",
        ("tests/engine/test_database.py", "tests/engine/test_security.py"),
    ),
    Mutant(
        "any-run-will-do",
        "a run id with other messages is a conflict",
        "engine/api/start.py",
        'if codec.dumps(recorded["messages"]) != codec.dumps(asked["messages"]):',
        "if False:",
        ("tests/engine/test_runs.py", "tests/crash/test_processes.py"),
    ),
    Mutant(
        "arguments-that-kill",
        "arguments that do not fit go back to the model, and never end the run",
        "tools/calls.py",
        "    except BadArguments as error:\n        return {",
        "    except ZeroDivisionError as error:\n        return {",
        ("tests/contract/test_tool_errors.py", "tests/contract/test_documented.py"),
    ),
    Mutant(
        "wrong-case-will-do",
        "a tool is called by its exact name only",
        "tools/calls.py",
        "if tool_name(function) == name), None)",
        "if tool_name(function).lower() == name.lower()), None)",
        ("tests/contract/test_tool_errors.py",),
    ),
    Mutant(
        "undecorated-is-a-step",
        "an undecorated tool with steps goes on after its last finished step",
        "tools/calls.py",
        '"plan": "step" if alone else "flow"',
        '"plan": "step"',
        (f"{MATRIX}[five_steps]",),
    ),
    Mutant(
        "handoffs-by-object",
        "after a crash an agent is found by its name",
        "loop.py",
        "agent = outcome.agent or agent",
        "agent = agent",
        ("tests/contract/test_handoffs.py",),
    ),
    Mutant(
        "orphaned-calls",
        "every tool call has its message",
        "loop.py",
        '            history.append({"role": "tool"',
        '            call.plan == "tell" or history.append({"role": "tool"',
        ("tests/contract/test_tool_errors.py",),
    ),
    Mutant(
        "sleep-from-the-start",
        "a sleep ends when it was first to end",
        "engine/execution/tool_steps.py",
        "left = backend_steps.record_sleep(seconds)",
        "left = seconds",
        ("tests/crash/test_sleeps.py",),
    ),
    Mutant(
        "the-first-life-looks-at-nothing",
        "who has lost a run makes no further call of it",
        "engine/processes/process.py",
        "if status in UNFINISHED and owner != run.owner:",
        "if False:",
        ("tests/engine/test_queue.py",),
    ),
    Mutant(
        "a-claim-is-forgotten",
        "a run whose claim was committed while the connection broke is executed",
        "engine/processes/lost_claims.py",
        "        if lost:",
        "        if False:",
        ("tests/engine/test_strays.py",),
    ),
    Mutant(
        "the-earlier-one-says",
        "an execution whose place another one has taken does not say what becomes of the run",
        "engine/processes/local_runs.py",
        "if self.executions.get(run.run_id, run) is run:",
        "if True:",
        ("tests/engine/test_local_runs.py",),
    ),
    Mutant(
        "passed-round",
        "a worker does not take back at once what it has left to others",
        "engine/processes/local_runs.py",
        "return time.monotonic() < self.until",
        "return False",
        ("tests/engine/test_queue.py",),
    ),
    Mutant(
        "changes-are-accepted-unseen",
        "a changed agent answers only once a person has accepted it, where the swarm holds",
        "engine/execution/performer.py",
        "if accepted != mark(change):",
        "if False:",
        ("tests/engine/test_changed_agents.py",),
    ),
    Mutant(
        "no-rate",
        "a rated model is asked at its pace",
        "engine/storage/rates.py",
        "return max(0.0,",
        "return min(0.0,",
        ("tests/engine/test_rates.py",),
    ),
    Mutant(
        "late-and-begun",
        "who comes late to a run that was taken over meanwhile begins nothing",
        "engine/processes/workflows.py",
        "if process.may_be_late(run):",
        "if False:",
        ("tests/engine/test_strays.py::test_a_dispatch_that_comes_late_begins_nothing",),
    ),
    Mutant(
        "the-loser-goes-on",
        "who has lost a run that it recovered makes no further call of it",
        "engine/backend/steps.py",
        "if found is None and life is not None and not life.is_first:",
        "if False:",
        ("tests/engine/test_internals.py::test_who_has_lost_a_run_begins_no_step",),
    ),
    Mutant(
        "always-new",
        "a run is in its first life in the execution of its first claim alone",
        "engine/backend/steps.py",
        'status["recovery_attempts"] == 1',
        'status["recovery_attempts"] >= 1',
        ("tests/engine/test_internals.py::test_only_a_first_claim_is_new",),
    ),
    Mutant(
        "anybodys-to-leave",
        "a process that stops leaves to others no run of another that lives",
        "engine/processes/recovery.py",
        'mine = row.status == "PENDING" and row.executor_id == self._process.identity.name',
        'mine = row.status == "PENDING"',
        ("tests/engine/test_queue.py::test_a_run_that_lives_elsewhere_is_nobodys_to_leave",),
    ),
    Mutant(
        "past-the-limits",
        "what a worker without the agents took from the queue counts for the queue's limits",
        "engine/processes/recovery.py",
        "            runs = self._without_queued(runs)\n",
        "",
        ("tests/crash/test_workers.py::test_limits_hold_beside_a_worker_without_the_agents",),
    ),
    Mutant(
        "calls-stay",
        "the open calls of a run go with it to who takes it over",
        "engine/storage/ownership.py",
        """                calls = self._calls_of(run_id) & runs.c.status.in_(UNFINISHED)
""",
        """                calls = self._calls_of(run_id) & (runs.c.status == "NONE")
""",
        ("tests/engine/test_ownership.py",),
    ),
    Mutant(
        "resumes-what-was-read",
        "a run that goes on already is not resumed again",
        "engine/storage/ownership.py",
        """            & (runs.c.status == row.status)
            & runs.c.completed_at.is_not_distinct_from(row.completed_at)
""",
        "",
        ("tests/engine/test_ownership.py",),
    ),
    Mutant(
        "waits-for-the-thief",
        "who has lost a run does not wait for who has it, and may have died",
        "engine/backend/steps.py",
        """        if isinstance(result, _outcome.NoResult):
            raise OwnershipLost(workflow_id)
        return result
""",
        """        import time

        while isinstance(result, _outcome.NoResult):
            time.sleep(0.1)
            result = self._database.check_workflow_result(workflow_id)
        return result
""",
        ("tests/engine/test_ownership.py",),
    ),
    Mutant(
        "one-look-is-enough",
        "who has lost its connections for a moment is not dead",
        "engine/processes/identity.py",
        "        return self._has_been_silent(name, last[0])\n",
        "        return True\n",
        ("tests/engine/test_signs.py",),
    ),
    Mutant(
        "still-is-dead",
        "a process that stood still has not died of its tool",
        "engine/execution/crash_guard.py",
        "        if again.stood:\n",
        "        if False:\n",
        ("tests/engine/test_trials.py::test_who_stood_still_has_not_died",),
    ),
    Mutant(
        "only-exceptions-fail",
        "whatever user code raises ends the run, once",
        "ends.py",
        "passes = isinstance(error, tuple(_signals)) or interrupts(error) or _cancelled_from_outside(error)",
        "passes = True",
        ("tests/engine/test_ends.py::test_sorting",),
    ),
    Mutant(
        "anybody-cancels",
        "user code that cancels every task cancels no run on a loop of ours",
        "tasks.py",
        "if self._is_protected and own[: len(canceller)] != canceller:",
        "if False:",
        ("tests/engine/test_blanket_cancels.py",),
    ),
    Mutant(
        "unrecorded-executions-are-free",
        "a call that ends its program each time is given up",
        "engine/execution/crash_guard.py",
        "if ends.failure_of(error) is not None:",
        "if False:",
        ("tests/engine/test_blanket_cancels.py::test_on_a_loop_of_the_program_it_is_bounded",),
    ),
    Mutant(
        "locks-of-the-process",
        "a tool that reads the database's files frees no lock",
        "engine/database/byte_locks.py",
        "self.outlives_readers = self._has_own_locks()",
        "self.outlives_readers = False",
        ("tests/engine/test_guard.py::test_reading_the_lock_file_frees_nothing",),
    ),
    Mutant(
        "cut-calls-are-made",
        "no call of a reply that the provider cut is made",
        "tools/calls.py",
        "    if finish in CUT:",
        "    if False:",
        ("tests/contract/test_endings.py",),
    ),
    Mutant(
        "twins-are-forgotten",
        "what becomes of a repeated call is decided once, and recorded",
        "engine/records/runs.py",
        'if call.plan == "same":',
        "if False:",
        ("tests/contract/test_repeats.py",),
    ),
    Mutant(
        "few-threads",
        "each plain function has a thread of its own, however many wait",
        "background.py",
        "MANY = 10_000",
        "MANY = 32",
        ("tests/engine/test_threads.py::test_tools_that_wait_for_runs_starve_nobody",),
    ),
    Mutant(
        "live-context-for-all",
        "calls made together see nothing of each other's changes, in memory too",
        "swarm/memory.py",
        "change, context = Change.watch(effect.context, is_stored=False)",
        "change, context = Change.watch(effect.context, is_stored=False)[0], effect.context",
        ("tests/contract/test_changes.py",),
    ),
    Mutant(
        "silent-loss",
        "a value that is lost to a call made together is logged",
        "tools/changes.py",
        "if all(_same(one.form, kept.form) for one in several):",
        "if True:",
        ("tests/contract/test_changes.py",),
    ),
    Mutant(
        "counts-at-the-limit",
        "a call that a limit did not permit is not counted as uncertain",
        "engine/execution/budget.py",
        " and (forced or self._own_reached(failing) is None):",
        ":",
        ("tests/crash/test_limits.py::test_a_run_killed_at_its_limit_counts_no_call_that_was_not_permitted",),
    ),
    Mutant(
        "waits-with-the-turn",
        "who has the right to write waits for no connection",
        "engine/database/connection.py",
        "pool_size=0,",
        "pool_size=4, max_overflow=0,",
        ("tests/engine/test_guard.py::test_who_writes_waits_for_nobody_that_waits_to_write",),
    ),
    Mutant(
        "blames-the-tool",
        "a database that fails under a tool fails no run",
        "engine/execution/errors.py",
        "        return RunHeld(error, passes=True)\n    return None",
        "        return None\n    return None",
        ("tests/engine/test_database_errors.py::test_a_database_that_fails_under_a_run_with_children_fails_no_run",),
    ),
    Mutant(
        "forgets-the-summary",
        "the model call that writes a summary counts for the limits",
        "engine/execution/compacting.py",
        "unsettled = run.budget.summarized(summary.spent, replayed=replayed)",
        "unsettled = None",
        ("tests/contract/test_compaction.py",),
    ),
    Mutant(
        "reported-before-commit",
        "who asked for a write learns of it when it is on disk, not before",
        "engine/database/together.py",
        "                made = [one.write(connection) for one in batch]\n",
        """                made = [one.write(connection) for one in batch]
                for one in batch:
                    one.done, one.written = True, True
                    one.turn.set()
""",
        ("tests/engine/test_checkpoints.py",),
    ),
    Mutant(
        "one-of-a-batch-dropped",
        "all writes that meet are made",
        "engine/database/together.py",
        "[one.write(connection) for one in batch]",
        "[one.write(connection) for one in batch[:1]] + [True] * (len(batch) - 1)",
        ("tests/engine/test_checkpoints.py",),
    ),
    Mutant(
        "answers-of-a-batch-mixed",
        "of writes that meet, each thread learns of its own",
        "engine/database/together.py",
        "written = made",
        "written = made[::-1]",
        ("tests/engine/test_checkpoints.py",),
    ),
    Mutant(
        "step-of-a-lost-run",
        "who has lost a run records nothing of it",
        "engine/backend/checkpoints.py",
        '.where(self._owned("workflow_uuid"))',
        '.where(self._owned("workflow_uuid") | (self._runs.c.name != ""))',
        ("tests/engine/test_checkpoints.py",),
    ),
]


def is_red(mutant: Mutant) -> bool:
    """Whether the tests notice. Raises `ValueError` if the place is not there, or is there more than once."""
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "durable_swarm"
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / mutant.file
        text = file.read_text()
        if text.count(mutant.right) != 1:
            raise ValueError(f"{mutant.name}: its place is {text.count(mutant.right)} times in {mutant.file}")
        file.write_text(text.replace(mutant.right, mutant.wrong))
        path = os.pathsep.join([name, *filter(None, [os.environ.get("PYTHONPATH")])])
        made = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=100", *mutant.tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=False,
        )
    if made.returncode not in (0, 1):
        raise ValueError(f"{mutant.name}: its tests cannot be run\n{made.stdout.decode()[-2000:]}")
    return made.returncode == 1


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
