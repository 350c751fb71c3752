"""The engine under every method: prefill once, evict, decode what is kept."""
