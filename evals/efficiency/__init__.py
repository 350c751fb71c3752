"""Measure latency and memory of each setting and of the full cache in the same run."""
