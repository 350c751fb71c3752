"""Calibrate a model: find its retrieval heads, and measure how much each layer suffers from eviction."""
