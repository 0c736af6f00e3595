"""Use cases for every interface (command line, HTTP, console): inspect runs, answer and resume them, check the setup.

Nothing here executes a run or takes one over; programs that define agents do that. Results are frozen dataclasses, and
`to_json` converts each of them to JSON.
"""

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
from durable_swarm.service.timeline import Bar, Stretch, Timeline, timeline
from durable_swarm.service.transcript import Said, calls_of, text_of, transcript
from durable_swarm.service.views import INTERRUPTED, Failure, RunDetail, RunView, SessionDetail, SessionView, to_json
from durable_swarm.service.workers import ProcessView, QueueView, RateView, Workers

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
