"""Outcomes of calls and requests: output during a run, completion, recovery from failures, out of memory."""
