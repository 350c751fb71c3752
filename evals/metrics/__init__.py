"""Metrics of predictions, for all evaluations."""
