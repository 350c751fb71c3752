"""Run lm-evaluation-harness with a compressed cache."""
