"""The commands `studio embed`, `rank`, `label` and `search`; each is the attribute `command` of its module."""
