"""Benchmarks: Buttervolume beside the bare commands and the published original.

`./test.sh --benchmarks` as root runs them all; nothing here is collected by pytest, and no time is
ever asserted.
"""
