"""`python -m tests.soak.daemon CLOCK`: the daemon of `buttervolume run`, by another clock."""

import os
import sys
from pathlib import Path

from buttervolume import config, daemon
from tests.soak.clock import Clock

if __name__ == "__main__":
    daemon.run(config.load(os.environ), Clock(Path(sys.argv[1])).now)
