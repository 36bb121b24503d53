"""Hosts, networks, filesystems and Docker daemons, made for one test and gone after it."""
