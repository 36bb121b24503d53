"""The page for a browser, and the metrics: read-only, an application of its own."""
