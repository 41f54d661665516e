"""The text starter: a corpus of ideas and picture prompts, and a decoder made from the text tower."""
