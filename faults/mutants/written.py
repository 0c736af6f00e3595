"""Mutants of what is written and read: checkpoints, files, locks, tables, records."""

from __future__ import annotations

from faults.mutants.mutant import Mutant

WRITTEN = [
    Mutant(
        "failure-to-record-is-failure",
        "a success that cannot be recorded is no failure of the run",
        "engine/backend/steps.py",
        'if status == "ERROR" and not isinstance(reason, Broken):',
        "if False:",
        ("tests/engine/test_internals.py",),
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
        "no-rate",
        "a rated model is asked at its pace",
        "engine/storage/rates.py",
        "return max(0.0,",
        "return min(0.0,",
        ("tests/engine/test_rates.py",),
    ),
    Mutant(
        "the-loser-goes-on",
        "who has lost a run that it recovered makes no further call of it",
        "engine/backend/steps.py",
        "if found is None and check is not None and not check.is_first:",
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
        "locks-of-the-process",
        "a tool that reads the database's files frees no lock",
        "engine/database/byte_locks.py",
        "self.outlives_readers = self._has_own_locks()",
        "self.outlives_readers = False",
        ("tests/engine/test_file_guard.py::test_reading_the_lock_file_frees_nothing",),
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
        "waits-with-the-turn",
        "who has the right to write waits for no connection",
        "engine/database/connection.py",
        "pool_size=0,",
        "pool_size=4, max_overflow=0,",
        ("tests/engine/test_file_guard.py::test_who_writes_waits_for_nobody_that_waits_to_write",),
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
