"""Shared by training recipes: resumable runs, EMA, logs and learning curves.

Training loops are in each plugin's `train` modules.
"""
