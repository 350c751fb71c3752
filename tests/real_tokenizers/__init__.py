"""The tokenizers of the paper's models, from package registries, in model folders of true shape and random weights."""
