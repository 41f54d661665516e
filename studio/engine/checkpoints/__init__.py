"""Checkpoints: states in files, autosave, run folders of living processes, resume."""
