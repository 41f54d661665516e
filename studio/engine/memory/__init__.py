"""What takes memory: the ledger, models and their components, eviction, the heap."""
