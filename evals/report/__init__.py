"""What is shown of results: by the terminal at the end of a run, read from the results folder without a model."""
