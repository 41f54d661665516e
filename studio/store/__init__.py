"""The artifact store: media by content hash, each with its recipe."""

from studio.store.store import Artifact, Store

__all__ = ["Artifact", "Store"]
