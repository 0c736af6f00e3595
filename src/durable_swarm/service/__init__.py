"""Use cases for every interface (command line, HTTP, console): inspect runs, answer and resume them, check the setup.

Nothing here executes a run or takes one over; programs that define agents do that. Results are frozen dataclasses, and
`to_json` converts each of them to JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_swarm.first_use import at_first_use

if TYPE_CHECKING:
    from durable_swarm.engine.api.inspector import NoRuns
    from durable_swarm.engine.database.diagnosis import is_unusable
    from durable_swarm.engine.history.export import read_document, renamed
    from durable_swarm.engine.history.export_redaction import Redact
    from durable_swarm.engine.storage.requests import NoRequest
    from durable_swarm.engine.storage.run_list import Query
    from durable_swarm.service.comparison import Compared, Comparison, Line
    from durable_swarm.service.doctor import Check, checkup
    from durable_swarm.service.executions import ExecutionView
    from durable_swarm.service.remedies import Remedy, remedy_of
    from durable_swarm.service.run_pages import NoStep, RunPage
    from durable_swarm.service.runs import Runs, import_run, open_runs
    from durable_swarm.service.timelines import Bar, Stretch, Timeline, timeline
    from durable_swarm.service.transcripts import Said, calls_of, text_of, transcript
    from durable_swarm.service.views import (
        INTERRUPTED,
        Failure,
        RunDetail,
        RunView,
        SessionDetail,
        SessionView,
        to_json,
    )
    from durable_swarm.service.workers import ProcessView, QueueView, RateView, Workers

_HOMES = {
    "durable_swarm.engine.api.inspector": ["NoRuns"],
    "durable_swarm.engine.database.diagnosis": ["is_unusable"],
    "durable_swarm.engine.history.export": ["read_document", "renamed"],
    "durable_swarm.engine.history.export_redaction": ["Redact"],
    "durable_swarm.engine.storage.requests": ["NoRequest"],
    "durable_swarm.engine.storage.run_list": ["Query"],
    "durable_swarm.service.comparison": ["Compared", "Comparison", "Line"],
    "durable_swarm.service.doctor": ["Check", "checkup"],
    "durable_swarm.service.executions": ["ExecutionView"],
    "durable_swarm.service.remedies": ["Remedy", "remedy_of"],
    "durable_swarm.service.run_pages": ["NoStep", "RunPage"],
    "durable_swarm.service.runs": ["Runs", "import_run", "open_runs"],
    "durable_swarm.service.timelines": ["Bar", "Stretch", "Timeline", "timeline"],
    "durable_swarm.service.transcripts": ["Said", "calls_of", "text_of", "transcript"],
    "durable_swarm.service.views": [
        "INTERRUPTED",
        "Failure",
        "RunDetail",
        "RunView",
        "SessionDetail",
        "SessionView",
        "to_json",
    ],
    "durable_swarm.service.workers": ["ProcessView", "QueueView", "RateView", "Workers"],
}
"""The modules of the public names: to list runs takes a part of them."""

__all__ = [
    "INTERRUPTED",
    "Bar",
    "Check",
    "Compared",
    "Comparison",
    "ExecutionView",
    "Failure",
    "Line",
    "NoRequest",
    "NoRuns",
    "NoStep",
    "ProcessView",
    "Query",
    "QueueView",
    "RateView",
    "Redact",
    "Remedy",
    "RunDetail",
    "RunPage",
    "RunView",
    "Runs",
    "Said",
    "SessionDetail",
    "SessionView",
    "Stretch",
    "Timeline",
    "Workers",
    "calls_of",
    "checkup",
    "import_run",
    "is_unusable",
    "open_runs",
    "read_document",
    "remedy_of",
    "renamed",
    "text_of",
    "timeline",
    "to_json",
    "transcript",
]

__getattr__, __dir__ = at_first_use(__name__, _HOMES)
