"""The artifact store: media under their hash, each with its recipe."""

from studio.store.store import Artifact, Store, default_home, user_home

__all__ = ["Artifact", "Store", "default_home", "user_home"]
