"""Evaluations: run and score them, store their results, and show these results."""

import os
import sys

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are written to files; keep the choice of a notebook or a user

try:
    import compresskv  # noqa: F401 - refuses a transformers that is too old
except ValueError as error:  # a UserError, before any command line is read
    sys.exit(f"error: {error}")
