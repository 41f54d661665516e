"""What commands are made of, those of plugins too: options, output, progress, and where `-o` points.

Nothing here is a command, and nothing here loads torch.
"""
