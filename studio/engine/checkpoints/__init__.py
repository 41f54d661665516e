"""States on disk: the file, when it is written, the running process's folder, resuming."""
