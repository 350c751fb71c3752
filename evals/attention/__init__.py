"""What single heads attend to while they answer a needle prompt: the paper's Fig. 1."""
