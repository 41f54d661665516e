"""Calls of plugins: how they run, their timeouts, and checks of what they raise and return."""
