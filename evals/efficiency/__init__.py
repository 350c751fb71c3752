"""Latency and memory of each setting, with the full cache beside it in the same run."""
