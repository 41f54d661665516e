"""Scheduling: which request runs next (fair queueing), how many share a step (continuous batching),
and what fits into memory (admission)."""
