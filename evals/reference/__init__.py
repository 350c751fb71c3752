"""The reference run of the default model: its sweeps, and the export of the part that is committed."""
