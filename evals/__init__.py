"""Evaluations: what is run, how it is scored, what it leaves behind and what is shown of it."""

import os
import sys

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are files; a notebook, or a user, has chosen already

try:
    import compresskv  # noqa: F401 - refuses a transformers that is too old
except ValueError as error:  # a UserError, before any command line is read
    sys.exit(f"error: {error}")
