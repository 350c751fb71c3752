"""Show results in the terminal, as tables and figures, and as a page; from files alone, without a model."""
