"""LongBench (arXiv 2308.14508): 16 English and 5 Chinese tasks, their prompts, data and metrics."""
