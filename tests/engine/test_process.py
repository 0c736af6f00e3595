"""Swarms of one process share one engine on one database; closing gives everything back, and use opens again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbos import DBOS
from sqlalchemy import Engine, event

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.background import background_loop
from durable_swarm.engine.backend import launch
from durable_swarm.engine.execution.child_calls import PendingCalls
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.signals import RunHeld
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, change, rows, unique, user, wait_until


def hello() -> ScriptedModel:
    """Give a model that always says Hello."""
    return ScriptedModel(lambda _: "Hello")


def test_making_a_swarm_opens_nothing(tmp_path: Path) -> None:
    """Construction does no I/O: no file, no thread, no launch, whatever the database would be."""
    before = set(threading.enumerate())
    DurableSwarm(hello(), database=f"sqlite:///{tmp_path}/a.sqlite")
    DurableSwarm(hello(), database="postgresql://nobody:secret@127.0.0.1:1/none")
    assert list(tmp_path.iterdir()) == []
    begun = {thread.name for thread in threading.enumerate() if thread not in before}
    assert [name for name in begun if name.startswith("durable-swarm")] == []
    assert not launch.launched()


def test_closing_what_was_never_opened(tmp_path: Path) -> None:
    """A swarm that was never used closes without opening anything, as often as one likes."""
    with DurableSwarm(hello(), database=f"sqlite:///{tmp_path}/a.sqlite") as swarm:
        swarm.close()
    swarm.close()
    assert list(tmp_path.iterdir()) == []


def test_swarms_share_one_engine(make: Make) -> None:
    """Several swarms on one database see each other's runs, and the last one closed closes the engine."""
    first, second = make(hello()), make(hello())
    first.run(Agent(), user(), run_id="one")
    second.run(Agent(), user(), run_id="two")
    assert [run.id for run in first.runs()] == [run.id for run in second.runs()] == ["two", "one"]
    first.close()
    assert launch.launched()
    assert second.get("one").result().messages[-1]["content"] == "Hello"
    second.close()
    assert not launch.launched()


def test_a_run_that_waits_says_for_what(make: Make, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is not taken over has one line in the log, with what is missing; another program's has none."""
    agent = Agent(name=unique())
    with make(hello(), name="sales") as swarm:
        for run_id in ("here", "foreign"):
            swarm.run(agent, user(), run_id=run_id)
    with make(hello(), name="support") as swarm:
        swarm.run(agent, user(), run_id="nowhere")
    change(url, "UPDATE {schema}workflow_status SET status = 'PENDING', executor_id = 'dead'")
    for run_id, swarm_name in (("foreign", "sales"), ("nowhere", "support")):
        change(
            url,
            "UPDATE {schema}workflow_status SET attributes = :text WHERE workflow_uuid = :run_id",
            text=f'{{"agent": "Nobody of {swarm_name}", "swarm": "{swarm_name}"}}',
            run_id=run_id,
        )
    with make(hello(), name="support") as swarm:
        assert swarm.recover() == []
    told = sorted(record.getMessage() for record in caplog.records if "waits" in record.getMessage())
    assert told == [
        "run 'here' waits: a swarm named 'sales' is not open in this process",
        "run 'nowhere' waits: its agent 'Nobody of support' is not defined in this process",
    ]


def test_closing_ends_the_wait_for_a_call_that_is_not_laid_down() -> None:
    """A tool call that was taken over before its run came to it waits for that no longer than the engine is open."""
    desk = PendingCalls()
    place = desk.place("run/0.0")
    desk.close()
    with pytest.raises(RunHeld, match="was closed while the run was in progress"):
        place.result(timeout=PATIENCE)


@contextlib.contextmanager
def slow_claims(seconds: float) -> Iterator[threading.Event]:
    """Have a thread that has claimed a run pause before it begins it, as on a busy machine; the event tells when."""
    claiming: set[int] = set()
    claimed = threading.Event()

    def pause(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not threading.current_thread().name.startswith("queue-worker-"):
            return
        if statement.startswith("UPDATE"):
            claiming.add(threading.get_ident())
        elif threading.get_ident() in claiming:
            claiming.clear()
            claimed.set()
            time.sleep(seconds)

    event.listen(Engine, "before_cursor_execute", pause)
    yield claimed
    event.remove(Engine, "before_cursor_execute", pause)


def test_closing_waits_for_a_run_that_is_being_claimed(make_anywhere: Make, database_url: str) -> None:
    """Closing while a run is claimed, but not yet begun, gives no warning, and the next start takes the run over."""
    agent = Agent(name=unique())
    with make_anywhere(hello()) as first:
        first.run(agent, user(), run_id="r")
    change(database_url, "UPDATE {schema}workflow_status SET status = 'PENDING', executor_id = 'dead'")
    with slow_claims(0.3) as claimed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second = make_anywhere(hello(), worker_id="second")
        second.recover()
        assert claimed.wait(PATIENCE)
        second.close()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert rows(database_url, "status, executor_id") == [("PENDING", "second")]
    third = make_anywhere(hello(), worker_id="third")
    assert [run.id for run in third.recover()] == ["r"]
    assert third.get("r").result(PATIENCE).messages[-1]["content"] == "Hello"


def test_each_swarm_uses_its_own_client_and_settings(make: Make) -> None:
    """Client and settings belong to the swarm, not to the engine it shares."""

    def fail() -> str:
        raise ValueError("broken")

    strict = make(ScriptedModel([["fail"]]))
    lenient = make(ScriptedModel([["fail"], "Never mind"]), tool_errors="tell")
    agent = Agent(functions=[fail])
    assert lenient.run(agent, user()).messages[-1]["content"] == "Never mind"
    with pytest.raises(ValueError, match="broken"):
        strict.run(agent, user())


def test_two_databases_in_one_process(make: Make, tmp_path: Path) -> None:
    """A second database is refused with both names and the remedy; after closing the first it can be used."""
    first = make(hello())
    first.run(Agent(), user())
    other = make(hello(), database=f"sqlite:///{tmp_path}/other.sqlite")
    with pytest.raises(ConfigurationError, match="one process has one database") as caught:
        other.run(Agent(), user())
    assert "runs.sqlite" in str(caught.value)
    assert "other.sqlite" in str(caught.value)
    assert not (tmp_path / "other.sqlite").exists()
    assert first.run(Agent(), user()).messages[-1]["content"] == "Hello"
    first.close()
    assert other.run(Agent(), user()).messages[-1]["content"] == "Hello"


def test_a_refused_database_shows_no_password(make: Make) -> None:
    """The refusal of a second database names it without its password."""
    make(hello()).run(Agent(), user())
    with pytest.raises(ConfigurationError) as caught:
        make(hello(), database="postgresql://someone:s3cr3t@127.0.0.1:1/x").run(Agent(), user())
    assert "s3cr3t" not in str(caught.value)


def test_the_same_file_by_another_path(make: Make, tmp_path: Path) -> None:
    """One file is one database, whichever way it is spelled."""
    (tmp_path / "link").symlink_to(tmp_path)
    make(hello()).run(Agent(), user(), run_id="r")
    for spelled in ("sqlite:///runs.sqlite", "sqlite:///./runs.sqlite", f"sqlite:///{tmp_path}/link/runs.sqlite"):
        assert make(hello(), database=spelled).get("r").status == "done"


def test_close_and_use_again(make_anywhere: Make) -> None:
    """After `close` the next use opens again and knows what was recorded; close may be called any number of times."""
    swarm = make_anywhere(hello())
    for number in range(3):
        swarm.run(Agent(), user(), run_id=f"run-{number}")
        swarm.close()
        swarm.close()
        assert not launch.launched()
    assert len(swarm.runs()) == 3
    assert swarm.get("run-0").result().messages[-1]["content"] == "Hello"


def test_a_handle_outlives_close(make: Make) -> None:
    """A run's handle opens its swarm again when it is used after `close`."""
    swarm = make(hello())
    run = swarm.start(Agent(), user())
    response = run.result(PATIENCE)
    swarm.close()
    assert run.status == "done"
    assert run.result().messages == response.messages


def test_with_statement(make: Make, url: str) -> None:
    """`with` closes the swarm, also when the block raises."""

    def program() -> None:
        with DurableSwarm(hello(), database=url) as swarm:
            swarm.run(Agent(), user())
            raise LookupError

    with pytest.raises(LookupError):
        program()
    assert not launch.launched()


def test_closing_leaves_no_threads(make: Make) -> None:
    """Opening and closing again and again does not gather threads, and event loops stay usable."""
    swarm = make(hello())

    async def main() -> str:
        response = await swarm.run_async(Agent(), user())
        return str(await asyncio.to_thread(lambda: response.messages[-1]["content"]))

    def others() -> int:
        names = [thread.name for thread in threading.enumerate()]
        # The pools fill as they are needed, and no further; of all others the count must not grow.
        pooled = [name for name in names if name.startswith(("durable-swarm-errand", "durable-swarm-tool"))]
        assert sum(name.startswith("durable-swarm-errand") for name in pooled) <= 8
        return len(names) - len(pooled)

    counts = []
    for _ in range(8):
        swarm.run(Agent(), user())
        assert asyncio.run(main()) == "Hello"
        swarm.close()
        counts.append(others())
    wait_until(lambda: others() <= counts[0] + 2)  # A thread that was told to end takes its time on a busy machine.
    answer = asyncio.run_coroutine_threadsafe(asyncio.to_thread(lambda: 5), background_loop())
    assert answer.result(PATIENCE) == 5


def test_closing_while_a_run_is_under_way(make: Make) -> None:
    """`close` does not wait for a run; the run stays unfinished, and the next opening goes on with it."""
    entered, opened = threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        assert opened.wait(PATIENCE)
        return "held"

    agent = Agent(name=unique(), functions=[hold])
    swarm = make(ScriptedModel([["hold"], "Done"]))
    run = swarm.start(agent, user(), run_id="r")
    assert entered.wait(PATIENCE)
    swarm.close()
    opened.set()
    assert run.status == "running"
    assert run.result(PATIENCE).messages[-1]["content"] == "Done"
    assert run.agent == agent.name


def test_the_program_may_launch_dbos_later(make: Make, tmp_path: Path) -> None:
    """After all swarms are closed a program can launch a DBOS of its own in the same process."""
    swarm = make(hello())
    swarm.run(Agent(), user())
    swarm.close()
    DBOS(config={"name": "own", "system_database_url": f"sqlite:///{tmp_path}/own.sqlite"})
    try:
        DBOS.launch()
        assert DBOS.list_workflows() == []
    finally:
        DBOS.destroy()


def test_opening_from_many_threads(make: Make) -> None:
    """Threads that use fresh swarms at the same moment open one engine, and all get their answers."""
    swarms = [make(hello()) for _ in range(6)]
    barrier, found = threading.Barrier(6), []

    def use(swarm: DurableSwarm) -> None:
        barrier.wait(PATIENCE)
        found.append(swarm.run(Agent(), user()).messages[-1]["content"])

    threads = [threading.Thread(target=use, args=[swarm]) for swarm in swarms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == ["Hello"] * 6
    assert len({row[0] for row in rows(str(swarms[0].database), "executor_id")}) == 1


def test_the_default_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `database` the environment names it, and without that it is a file in the working directory."""
    with DurableSwarm(hello()) as swarm:
        swarm.run(Agent(), user())
    assert (tmp_path / "durable_swarm.sqlite").exists()
    monkeypatch.setenv("DURABLE_SWARM_DATABASE_URL", f"sqlite:///{tmp_path}/named.sqlite")
    with DurableSwarm(hello()) as swarm:
        swarm.run(Agent(), user())
    assert (tmp_path / "named.sqlite").exists()


def test_one_worker_id_for_two_processes(url: str) -> None:
    """A worker_id that a living process uses is refused in another process, which works without one."""
    source = """
        import json, sys
        from durable_swarm import Agent, ConfigurationError, DurableSwarm
        from durable_swarm.testing import ScriptedModel

        found = {}
        for worker_id in ("me", None):
            with DurableSwarm(ScriptedModel(["Hello"]), database=sys.argv[1], worker_id=worker_id) as swarm:
                try:
                    found[str(worker_id)] = swarm.run(Agent(), []).messages[-1]["content"]
                except ConfigurationError as error:
                    found[str(worker_id)] = str(error)
        print(json.dumps(found))
    """
    with DurableSwarm(hello(), database=url, worker_id="me") as swarm:
        swarm.run(Agent(), user())
        found: dict[str, Any] = Program(source).run(url)
    assert "already works as worker_id 'me'" in found["me"]
    assert found["None"] == "Hello"


NAMED = """
    import sys, time
    from pathlib import Path
    from durable_swarm import Agent, DurableSwarm
    from durable_swarm.testing import ScriptedModel

    def work() -> str:
        Path("begun").touch()
        time.sleep(60 if sys.argv[2] == "first" else 0)
        return "worked"

    agent = Agent(name="Named", functions=[work])
    model = ScriptedModel(lambda request: "Done." if request["messages"][-1]["role"] == "tool" else [("work", {})])
    with DurableSwarm(model, database=sys.argv[1], worker_id="me") as swarm:
        swarm.start(agent, [{"role": "user", "content": "Hi"}], run_id="r").result()
        print('"ended"')
"""


def test_a_named_process_goes_on_with_its_own(database_url: str) -> None:
    """What a killed process of a name has left, the next of that name takes over, and leaves to no other queue."""
    program = Program(NAMED)
    program.run_and_kill(Path("begun").exists, database_url, "first")
    assert program.start(database_url, "second").communicate(timeout=200)[0] == '"ended"\n'
    assert {row.queue_name for row in rows(database_url, "queue_name")} <= {records_names.QUEUE + "me", None}


def test_a_program_without_threads_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gevent has replaced the threads, one error says so and nothing is opened; patched otherwise, all works."""
    patched = {"threading", "socket"}
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=patched.__contains__))
    database = tmp_path / "runs.sqlite"
    with DurableSwarm(ScriptedModel(["hi"]), database=f"sqlite:///{database}") as swarm:
        with pytest.raises(ConfigurationError, match=r"gevent.*patch_all\(thread=False\)"):
            swarm.run(Agent(name=unique()), user())
        assert not database.exists()
        patched.remove("threading")
        assert swarm.run(Agent(name=unique()), user()).messages[-1]["content"] == "hi"
