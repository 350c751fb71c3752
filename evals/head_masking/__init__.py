"""Head masking: how much retrieval is lost when heads of a ranking attend to all tokens equally."""
