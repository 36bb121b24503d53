"""Volumes that follow their services from host to host."""
