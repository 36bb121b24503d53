"""The HTTP API, for Docker and the command line."""
