"""`python -m durable_swarm` is the command line `durable-swarm`."""

import sys

from durable_swarm.cli import main

if __name__ == "__main__":
    sys.exit(main())
