"""Diffusers pipelines, stepped by the host: any pipeline's own unmodified call, batched, paused, resumed and previewed.

Importing this package loads no torch; its modules do.
"""
