"""The attention of single heads while the model answers a needle prompt: the paper's Fig. 1."""
