"""The commands: where each is, and its line in `durable-swarm --help`, which imports none of them."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """The module in `durable_swarm.cli` with the command, its help line, and its function if it has another name."""

    module: str
    help: str
    function: str = ""


COMMANDS = {
    "answer": Command("requests", "Answer what a run asks."),
    "approve": Command("requests", "Approve a call that a run wants to make."),
    "cancel": Command("runs", "Stop a run at its next checkpoint."),
    "check": Command("check", "Report which unfinished runs a program can continue."),
    "compare": Command("compare", "Compare two runs turn by turn."),
    "complete": Command("requests", "Post the result that a tool has announced with later()."),
    "console": Command("console", "Serve the web console: runs and the inbox, live in a browser."),
    "completion": Command("completion", "Print a script that completes commands and ids in a shell."),
    "demo": Command("demo", "See the package at work in a small program."),
    "doctor": Command("doctor", "Check the installation, the database and MCP servers."),
    "export": Command("exports", "Write a run to a JSON file."),
    "extend": Command("limits", "Add amounts to the limits of a run."),
    "fork": Command("exports", "Start a new run from a turn of another."),
    "gc": Command("gc", "Delete runs that ended long ago."),
    "import": Command("exports", "Put an exported run into the database.", "import_"),
    "inbox": Command("requests", "List what runs ask, oldest first."),
    "mock": Command("mock", "Serve an offline model, so that programs run without a key."),
    "postgres": Command("postgres", "Run a PostgreSQL server of your own, with no setup."),
    "reject": Command("requests", "Reject a call that a run wants to make."),
    "resume": Command("runs", "Let a failed, cancelled or held run continue, or all failed ones."),
    "run": Command("script", "Run a Swarm program durably."),
    "runs": Command("runs", "List runs, newest first."),
    "say": Command("requests", "Send a message to a run in progress."),
    "schedules": Command("schedules", "List schedules; pause, resume and delete them."),
    "serve": Command("serve", "Serve the agents of a program over HTTP, and the console."),
    "session": Command("sessions", "Show the conversation of a session."),
    "sessions": Command("sessions", "List sessions, the latest change first."),
    "show": Command("runs", "Show a run and every step of it."),
    "trace": Command("trace", "Send a recorded run to OpenTelemetry."),
    "top": Command("top", "Show runs, queues, workers and requests on one live screen."),
    "watch": Command("watch", "Follow a run live, or read how it went."),
    "worker": Command("worker", "Execute queued runs, and those of dead processes."),
}
