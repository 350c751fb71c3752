"""Tables of means, what is compared in them, and how their numbers read: shared by all renderers; no file is read."""
