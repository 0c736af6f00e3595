"""The use cases of requests behind every face: what is open, who has answered, and where a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_swarm import AlreadyAnswered, ConfigurationError, InvalidAnswer, RunNotFound
from durable_swarm.service import NoRequest, Query, Runs, open_runs, to_json
from tests.support.asking import asking, leave
from tests.support.patience import PATIENCE


def look(url: str, question: Callable[[Runs], Any]) -> Any:
    """Ask the runs of a database something."""
    with open_runs(url) as runs:
        return question(runs)


def test_open_requests_of_all_runs(database_url: str) -> None:
    """Open requests are listed oldest first, of all runs or of one, and can be cut; their runs are `waiting`."""
    leave("one", "choose", database=database_url)
    leave("two", "refund", database=database_url)
    with open_runs(database_url) as runs:
        assert [request.run_id for request in runs.inbox.list()] == ["one", "two"]
        assert [request.run_id for request in runs.inbox.list("two")] == ["two"]
        assert [request.run_id for request in runs.inbox.list(limit=1)] == ["one"]
        assert {view.id for view in runs.list(Query(status="waiting"))} == {"one", "two"}
        with pytest.raises(RunNotFound):
            runs.inbox.list("three")


def test_a_run_has_its_requests(database_url: str) -> None:
    """A run in full has what it asked, open and closed, with who decided what and when, as JSON too."""
    leave("one", "choose", "refund", database=database_url)
    with open_runs(database_url) as runs:
        [question] = [request for request in runs.inbox.list("one") if request.kind == "question"]
        runs.inbox.answer(question.id, "red", "ann")
        requests = {request.kind: request for request in runs.show("one").requests}
        [stored] = [one for one in to_json(runs.show("one"))["requests"] if one["kind"] == "question"]
    answered = requests["question"]
    assert answered.decision is not None
    assert answered.answered_at is not None
    assert (answered.status, answered.decision.value, answered.answered_by) == ("answered", "red", "ann")
    assert datetime.now(UTC) - answered.answered_at < timedelta(minutes=1)
    assert (stored["answered_by"], stored["decision"]["value"]) == ("ann", "red")
    assert all(request.status == "open" for kind, request in requests.items() if kind != "question")


def test_decided_by_the_id_of_the_run(database_url: str) -> None:
    """The id of a run stands for its only open request; what is decided or unknown is refused, each in its own way."""
    leave("one", "refund", database=database_url)
    with open_runs(database_url) as runs:
        with pytest.raises(InvalidAnswer):
            runs.inbox.answer("one", "yes", None)
        assert runs.inbox.reject("one", "too much", "ann").status == "answered"
        with pytest.raises(AlreadyAnswered):
            runs.inbox.approve("one", None, "ann")
        with pytest.raises(NoRequest):
            runs.inbox.approve("two", None, "ann")


def test_where_a_run_goes_on(database_url: str) -> None:
    """A run goes on in its process while that lives; with none it waits for its program, and an ended one is over."""
    with asking("one", "choose", database=database_url) as run:
        assert look(database_url, lambda runs: runs.inbox.goes_on("one")) is True
        look(database_url, lambda runs: runs.inbox.answer("one", "red", None))
        run.result(timeout=PATIENCE)
    assert look(database_url, lambda runs: runs.inbox.goes_on("one")) is True
    leave("two", "choose", database=database_url)
    assert look(database_url, lambda runs: runs.inbox.goes_on("two")) is False


def test_a_result_is_posted_once(database_url: str) -> None:
    """A result goes to the run that waits for its token; one that comes before is kept, and a second is refused."""
    leave("one", "ship", database=database_url)
    with open_runs(database_url) as runs:
        assert runs.inbox.complete("parcel", "sent", "ann").run_id == "one"
        with pytest.raises(AlreadyAnswered):
            runs.inbox.complete("parcel", "sent", "ann")
        assert runs.inbox.complete("other", "sent", "ann") is None


def test_said_to_a_run_that_has_ended(database_url: str) -> None:
    """A run that has ended hears nothing more."""
    with asking("one", "choose", database=database_url) as run:
        run.answer("red")
        run.result(timeout=PATIENCE)
    with open_runs(database_url) as runs, pytest.raises(ConfigurationError, match="has ended"):
        runs.inbox.say("one", "Hi")
