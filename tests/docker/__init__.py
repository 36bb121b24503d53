"""Buttervolume under a real dockerd of the tests' own."""
