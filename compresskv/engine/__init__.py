"""The engine that runs every method: prefill once, evict, decode from the kept tokens."""
