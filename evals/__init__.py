"""Evaluations: what is run, how it is scored, what it leaves behind and what is shown of it."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are files; a notebook, or a user, has chosen already
