"""A task of one's own from a file of JSON lines."""
