"""Memory of a device: ledger, model cache, shared components, offload, eviction, untracked heap memory."""
