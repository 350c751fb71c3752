"""Download the official data.zip at a pinned revision, check it, and unpack it safely."""

import hashlib
import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from compresskv.errors import UserError
from compresskv.inputs import read_once

HUB_REPOSITORY = "THUDM/LongBench"  # redirects to zai-org/LongBench
HUB_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
HUB_SHA256 = "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64"
HUB_TIMEOUT = 5.0  # seconds
LARGEST_ARCHIVE = 4 << 30  # bytes unpacked; the official one has well under 1 GiB


def download(repository: str = HUB_REPOSITORY, revision: str = HUB_REVISION) -> Path:
    """Return the path of `data.zip` in the hub's cache. Downloads it if missing, or fails within seconds."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    file = {"filename": "data.zip", "repo_type": "dataset", "revision": revision}
    try:
        if not hub.try_to_load_from_cache(repository, **file) and not constants.HF_HUB_OFFLINE:
            # Try a single request first: the download itself would retry for half a minute.
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, **file), timeout=HUB_TIMEOUT)
        return Path(hub.hf_hub_download(repository, "data.zip", repo_type="dataset", revision=revision))
    except Exception as error:  # many unrelated types: no network, no such revision, no access, ...
        raise UserError(
            "eval.data",
            "set it to a local copy",
            value=repository,
            why=f"cannot download data.zip at revision {revision} ({reason(error)})",
        ) from error


def reason(error: Exception) -> str:
    """Return a short reason why a download failed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the hub's cache has no copy"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def unpack(archive: Path, cache: Path, expected_sha256: str | None = None) -> Path:
    """Unpack the archive's *.jsonl files into `cache`/<sha256>/, once for each content, and return that folder.

    The archive's folder structure is dropped. Nothing is unpacked if the sha256 is wrong, or the archive is damaged or
    has a member that would land outside the folder (absolute path, "..", link).
    """
    content = read_once(archive, "eval.data")
    digest = hashlib.sha256(content).hexdigest()
    if expected_sha256 and digest != expected_sha256.lower():
        raise UserError(
            "eval.sha256",
            "delete the archive and download it again",
            value=expected_sha256,
            why=f"the sha256 of {archive} is {digest}",
        )
    target = cache / digest
    if target.is_dir():
        return target
    try:
        with new_folder(target) as folder:
            _extract(archive, content, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _unusable(archive, f"not a complete zip archive ({error})") from error
    return target


def _unusable(archive: Path, why: str, fix: str = "download it again") -> UserError:
    return UserError("eval.data", fix, value=archive, why=why)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write into; it is renamed to `target` at the end of the block, or deleted on an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="unpacking-") as scratch:
            complete = Path(scratch) / "data"
            complete.mkdir()
            yield complete
            try:
                # Renaming is atomic. If another process made the folder first, it has the same files.
                os.rename(complete, target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            "COMPRESSKV_CACHE",
            "set it to another folder",
            value=target.parent,
            why=f"cannot unpack into this folder ({error.strerror or error})",
        ) from error


def _extract(archive: Path, content: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        members = opened.infolist()
        for member in members:
            _refuse_unsafe(archive, member)
        if sum(member.file_size for member in members) > LARGEST_ARCHIVE:
            raise _unusable(
                archive, f"its content is larger than {LARGEST_ARCHIVE >> 30} GiB", "give LongBench's archive"
            )
        paths = [PurePosixPath(member.filename) for member in members]
        # Skip files of other programs, which begin with a dot, such as "__MACOSX/._qasper.jsonl".
        wanted = [
            (member, path.name)
            for member, path in zip(members, paths, strict=True)
            if path.suffix == ".jsonl" and not member.is_dir() and not path.name.startswith(".")
        ]
        names = [name for _, name in wanted]
        if not wanted or len(set(names)) < len(names):
            fix = "give an archive with one task.jsonl file per task"
            raise _unusable(archive, f"it has {', '.join(sorted(names)) or 'none'}", fix)
        for member, name in wanted:
            with opened.open(member) as source, open(folder / name, "xb") as copy:
                shutil.copyfileobj(source, copy)


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise _unusable(archive, f"its member {name!r} would be written outside the target folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _unusable(archive, f"its member {name!r} is a symbolic link")
