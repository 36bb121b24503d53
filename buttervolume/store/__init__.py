"""This host: its volumes and their snapshots."""
