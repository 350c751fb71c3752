"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, their prompts, data and metrics."""
