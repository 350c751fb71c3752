"""Needle in a haystack: can the model still find one sentence in a long text after eviction?"""
