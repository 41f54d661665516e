"""Observability: the watcher protocol, status, metrics, traces."""
