"""The commands of the host, one file each: `command` is the click command. They are loaded when they are named."""
