"""Where downloads and converted models are kept, and where the files are that come with the package."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """$COMPRESSKV_CACHE, by default the user's cache."""
    return Path(os.environ.get("COMPRESSKV_CACHE") or platformdirs.user_cache_dir("compresskv"))


def shipped(name: str) -> Path:
    """A folder such as `conf`: a wheel has it inside the package, a checkout at its top."""
    packaged = Path(__file__).resolve().parent / "shipped" / name
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[1] / name


CONF = shipped("conf")
"""The folder of configurations, the same as Hydra composes."""
