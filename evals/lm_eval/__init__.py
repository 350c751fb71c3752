"""lm-evaluation-harness over a compressed cache."""
