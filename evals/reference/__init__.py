"""The reference run of the default model: its sweeps, and the part of their results that is committed."""
