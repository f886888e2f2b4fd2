"""Numbers of a running daemon: what is counted, where it comes from, and where Prometheus reads it."""
