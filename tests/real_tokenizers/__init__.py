"""Model folders of the paper's models: real tokenizers from package registries, real head counts, random weights."""
