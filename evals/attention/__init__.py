"""Attention of single heads while the model answers a needle prompt, as in the paper's Fig. 1."""
