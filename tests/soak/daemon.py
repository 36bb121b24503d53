"""`python -m tests.soak.daemon CLOCK`: the daemon of `buttervolume run`, by another clock."""

import os
import sys
from pathlib import Path

from buttervolume import config, daemon
from tests.soak.clock import Clock

COLLECT_EVERY = 4
"""Seconds in which about as much happens here as in the ten minutes for which the daemon waits."""

if __name__ == "__main__":
    daemon.COLLECT_EVERY = COLLECT_EVERY
    daemon.run(config.load(os.environ), Clock(Path(sys.argv[1])).now)
