"""Calibrate a model: find its retrieval heads, and measure the error of each layer under eviction."""
