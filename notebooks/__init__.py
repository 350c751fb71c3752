"""Notebooks that use the harness as a reader would; `make notebooks` executes them."""
