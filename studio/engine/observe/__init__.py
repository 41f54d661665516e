"""Who watches the engine: the watcher's protocol, status, metrics, traces."""
