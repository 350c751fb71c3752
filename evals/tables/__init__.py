"""Tables of means, their comparisons, and the format of their numbers, for all renderers. No files are read here."""
