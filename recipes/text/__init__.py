"""The text tower of the starters: its tokenizer, its captions, and distillation from MiniLM."""
