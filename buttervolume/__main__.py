"""`python -m buttervolume` is the `buttervolume` command."""

import sys

from buttervolume.cli import main

sys.exit(main())
