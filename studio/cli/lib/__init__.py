"""Building blocks of commands, also for plugins: options, output, progress, and the target of `-o`.

Nothing here is a command, and nothing here imports torch.
"""
