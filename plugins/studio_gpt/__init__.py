"""Studio's text plugin: a decoder for GPT-2 and the Llama family, and the generator `text`."""
