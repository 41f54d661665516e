"""Measured cost of calls: step times and peak memory (the profile), and the best number of CPU threads."""
