"""Real programs, processes and kills, without root or BTRFS: seconds, so apart from tests/unit."""
