"""Weights on disk: filling modules, streaming, checksums."""
