"""What a run leaves in the database: bytes per turn after 50, 100 and 200 turns, with and without the messages.

A turn is one model call of about 100 characters and one tool call with a result of 500. SQLite counts used pages of the
file, PostgreSQL the size of the schema's tables and indexes. Run: python benchmarks/storage.py [DATABASE_URL]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy

from durable_swarm import Agent, DurableSwarm, Limits, step
from durable_swarm.testing import ScriptedModel, call

USER = [{"role": "user", "content": "Go on until you are done."}]
TEXT = "word " * 100


def stamp(number: int, remark: str) -> str:
    """Stamp a number."""
    return TEXT


def scripted(turns: int) -> ScriptedModel:
    """Give a model that calls the tool once a turn."""

    def reply(request: dict[str, Any]) -> Any:
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return [call("stamp", number=done, remark="a remark of some length " * 2)] if done < turns else "Goodbye."

    return ScriptedModel(reply, strict=False)


def size(engine: sqlalchemy.Engine) -> int:
    """Give the bytes in use."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            pages, free, page = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
            return int((pages - free) * page)
        sizes = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        return int(connection.exec_driver_sql(f"{sizes} WHERE nspname = 'dbos' AND relkind = 'r'").scalar_one())


def measure(url: str, tool: Any, turns: int) -> tuple[float, float]:
    """Run `turns` turns; gives the bytes per turn of the database and of the messages alone."""
    runs = 10
    with DurableSwarm(scripted(turns), database=url) as swarm:
        agent = Agent(name="Stamper", functions=[tool])
        swarm.run(agent, USER, limits=Limits(requests=turns + 1))
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        before = size(engine)
        for _ in range(runs):
            response = swarm.run(agent, USER, limits=Limits(requests=turns + 1))
        after = size(engine)
        engine.dispose()
    messages = sum(len(json.dumps(message)) for message in response.messages)
    return (after - before) / runs / turns, messages / turns


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for label, tool in (("@step tool", step(stamp)), ("undecorated tool", stamp)):
            for turns in (50, 100, 200):
                url = options.database or f"sqlite:///{Path(folder) / f'{label[0]}{turns}.sqlite'}"
                total, messages = measure(url, tool, turns)
                beyond = total - messages
                print(f"{label:17} {turns:4} turns: {total:6.0f} bytes a turn, {beyond:5.0f} beyond the messages")


if __name__ == "__main__":
    main()
