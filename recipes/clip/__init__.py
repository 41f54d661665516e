"""The image tower of the starter CLIP."""
