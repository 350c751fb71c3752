"""Head masking: how much retrieval is lost when heads of a ranking attend to everything alike."""
