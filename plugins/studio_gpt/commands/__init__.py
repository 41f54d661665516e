"""The commands `studio text` and `studio chat`; each is the attribute `command` of its module."""
