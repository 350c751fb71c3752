"""Head masking: measure the loss of retrieval when the best heads of a ranking attend to all tokens equally."""
