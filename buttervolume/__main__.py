"""`python -m buttervolume` is the `buttervolume` command."""

import sys

from buttervolume.cli.main import main

sys.exit(main())
