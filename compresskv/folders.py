"""Where downloads and converted models are kept."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """$COMPRESSKV_CACHE, by default the user's cache."""
    return Path(os.environ.get("COMPRESSKV_CACHE") or platformdirs.user_cache_dir("compresskv"))
