"""Other hosts."""
