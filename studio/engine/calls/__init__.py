"""Calls of plugins: how they are made, given up when they hang, checked and blamed."""
