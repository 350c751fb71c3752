"""Needle in a haystack: test whether the model still finds one sentence in a long text after eviction."""
