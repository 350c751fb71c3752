"""Latency and memory of each setting and of the full cache, measured in the same run."""
