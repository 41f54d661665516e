"""Weights in safetensors files: filling modules, streaming, checksums."""
