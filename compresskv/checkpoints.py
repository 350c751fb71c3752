"""Find and fingerprint the files of a model, and make safetensors copies of GGUF files."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import decoders, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from compresskv import gguf_file, gguf_model, model_files
from compresskv.errors import UserError, readable
from compresskv.folders import cache_folder

_ORIGIN = "origin.json"
_HUB_TIMEOUT = 5.0  # seconds
_WITHOUT_EFFECT = re.compile(
    r"(transformer\.)?h\.\d+\.attn(\.attention)?\.(masked_)?bias"  # GPT-2, GPT-J, GPT-Neo: the causal mask, a constant
    r"|gpt_neox\.layers\.\d+\.attention\.(masked_)?bias"  # GPT-NeoX: the causal mask
    r"|(v_head|value_head|score|reward_head)\..+"  # heads that predict rewards instead of tokens
)
"""Names of checkpoint tensors that the language model does not have and does not need."""
_TRIED = ("hello  12345", "  x\n\n1. It's 3'S\t\tDON'T 1,000.5 (abc)!?", "один  два 二三 é\r\n  \n x", "hellooo world")
"""Texts that tokenizers split into words in different ways."""
_WHOLE = (3, 4)  # values of tokenizer.ggml.token_type: control, and user-defined
_SETTLED = 2.0
"""If a file is older than this (in seconds), its times reliably show later changes."""


def complete(info: Mapping[str, Iterable], source: str) -> None:
    """Raise `UserError`, naming the tensors, unless the checkpoint provided exactly the weights of the model.

    `info` is the loading information that `from_pretrained(..., output_loading_info=True)` returns with the model.
    Tensors that are known not to affect predictions are allowed.
    """
    wrong = {
        "missing": info["missing_keys"],
        "unexpected": [name for name in info["unexpected_keys"] if not _WITHOUT_EFFECT.fullmatch(name)],
        "of a different size": [name for name, *_ in info["mismatched_keys"]],
    }
    parts = []
    for word, keys in wrong.items():
        names = sorted(keys)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            parts.append(f"{word} {', '.join(names[:3])}{more}")
    if parts:
        raise UserError(
            "model.path",
            "download the model again, or correct config.json",
            value=Path(source),
            why=f"the weights do not match config.json ({'; '.join(parts)}), so transformers would replace them by "
            "random numbers or leave them out",
        )


def ask_once(source: str, revision: str | None) -> None:
    """Raise at once if a hub id is not cached and the hub cannot be reached. `from_pretrained` tries for a minute.

    Makes no request for a directory, or if HF_HUB_OFFLINE is set.
    """
    if os.path.exists(source) or constants.HF_HUB_OFFLINE:
        return
    if not try_to_load_from_cache(source, "config.json", revision=revision):
        url = hf_hub_url(source, "config.json", revision=revision)
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(url, timeout=_HUB_TIMEOUT)


def fingerprint(source: str, revision: str | None, code: bool = False) -> str:
    """Return a hash that identifies the model: the hub's commit, or a hash of the contents of the files that are read.

    The commit is used if each file in the hub's cache still matches the hash in its name; otherwise the contents are
    hashed. `code`: whether code that comes with the model runs. Hashes are cached (see `sha256`). Raises `UserError` if
    the weights are ambiguous.
    """
    folder = folder_of(source, revision)
    contents = _contents(folder, code)
    if folder == Path(source) or not all(_as_downloaded(folder / name) for name in contents):
        identity: object = contents
    else:
        identity = [source, folder.name]  # the snapshot folder is named after the commit
    if code and (elsewhere := _code_elsewhere(folder)):
        identity = [identity, elsewhere]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def folder_of(source: str, revision: str | None) -> Path:
    """Return the folder of the model files: a directory, or the cached commit of a hub id's `revision`.

    Raises an `OSError` of huggingface_hub if the id is not in the cache.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(hf_hub_download(source, "config.json", revision=revision, local_files_only=True)).parent


def _contents(folder: Path, code: bool = False) -> dict[str, str]:
    """Return the sha256 of each file that a model or a tokenizer is read from, by its name in `folder`."""
    return {name: sha256([folder / name]) for name in model_files.names(folder, code) if name != _ORIGIN}


def _as_downloaded(path: Path) -> bool:
    """Return whether a file in the hub's cache links to a blob named after the hash of its content (sha256 or git)."""
    if not path.is_symlink():
        return False
    name = Path(os.readlink(path)).name
    if len(name) == 64:
        return sha256([path]) == name
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == name


def _code_elsewhere(folder: Path) -> dict[str, str]:
    """Return the sha256 of each Python file in the other repositories or folders that `folder` takes code from."""
    found: dict[str, str] = {}
    for repository, module in model_files.code_elsewhere(folder):
        with suppress(LocalEntryNotFoundError):  # not downloaded, so it was not run
            home = Path(repository)
            if not home.is_dir():
                home = Path(hf_hub_download(repository, module, local_files_only=True)).parent
            found |= {f"{repository}--{path.name}": sha256([path]) for path in sorted(home.glob("*.py"))}
    return found


def sha256(parts: Sequence[Path]) -> str:
    """Return the sha256 of the concatenation of these files.

    The hash of files of more than 1 MiB is kept in the user's cache for as long as path, size, times and inode stay the
    same. An edit changes the ctime, which cannot be set back.
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
    """Return the safetensors copy of the GGUF file made up of these parts, and its identity.

    The copy is float32, is stored in the user's cache, and is made only once. The identity is the sha256 of the file,
    or, if transformers ignores settings of the file, a hash of the sha256 and these settings. Raises `UserError` if the
    sha256 is not `expected`, if a key or a tensor is not supported, or if the copy was changed afterwards.
    """
    file = gguf_file.read(parts)
    digest = sha256(parts)
    if expected and digest != expected:
        raise UserError(
            "model.sha256",
            "install the package again, or set model.sha256=null",
            value=expected,
            why=f"the sha256 of {parts[0]} is {digest}",
        )
    meaning = gguf_model.meaning(file, digest)
    identity = meaning.identity(digest)
    cache = cache_folder()
    target = cache / "models" / f"{_without_ending(parts[0].name)}-{identity[:16]}"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    _dequantise(file, meaning, target)
        except OSError as error:
            raise UserError(
                "COMPRESSKV_CACHE", "set it to another folder", value=cache, why=f"cannot be written ({error.strerror})"
            ) from error
    if json.loads((target / _ORIGIN).read_text()) != _contents(target):
        raise UserError(
            None, "delete that folder", value=target, why=f"the file was changed after it was made from {parts[0].name}"
        )
    made = AutoConfig.from_pretrained(target)
    for name, value in meaning.config.items():
        if getattr(made, name, None) != value:
            raise UserError(
                "model.path",
                f"delete {target}, and install a tested version of transformers",
                value=parts[0],
                why=f"it has {name}={value}, but its converted copy has {getattr(made, name, None)}",
            )
    return target, identity


def _without_ending(name: str) -> str:
    return re.split(r"(?i)\.gguf", name)[0]


def _dequantise(file: gguf_file.GgufFile, meaning: gguf_model.Meaning, target: Path) -> None:
    """Save a GGUF file as float32 safetensors. The folder gets its final name only when it is complete."""
    config = meaning.configuration()
    source = str(file.parts[0])
    kept = {name: tensor.elements for name, tensor in file.tensors.items()}
    held = sum(kept[name] for name in kept.keys() - gguf_model.OF_THE_CONFIGURATION)
    if (needed := _weights_of(config)) != held:
        raise UserError(
            "model.path",
            "convert the model again",
            value=Path(source),
            why=f"its keys describe a model of {needed} weights, but its tensors have {held} weights",
        )
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        whole = partial / "whole.gguf"  # alone in its folder, so that no other files are read with it
        if len(file.parts) == 1:
            whole.symlink_to(file.parts[0].resolve())
        else:
            with whole.open("wb") as joined:
                for part in file.parts:
                    with part.open("rb") as opened:
                        shutil.copyfileobj(opened, joined)
        gguf = {"pretrained_model_name_or_path": str(partial), "gguf_file": whole.name}
        tokenizer = AutoTokenizer.from_pretrained(**gguf, config=config)
        _honour(meaning.tokenizer, tokenizer, source)
        _refuse_other_tokens(file, meaning, tokenizer)
        model: PreTrainedModel
        model, info = AutoModelForCausalLM.from_pretrained(
            **gguf,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
        complete(info, source)
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise UserError(name, "download the file again", why="it has infinite numbers or NaN", where=source)
        stop = list(meaning.stop_ids)
        model.generation_config.eos_token_id = stop if len(stop) > 1 else stop[0]
        model.save_pretrained(partial)
        whole.unlink()
        _save(tokenizer, partial, source)
        (partial / _ORIGIN).write_text(json.dumps(_contents(partial)))
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _weights_of(config: PreTrainedConfig) -> float:
    """Return the number of weights of a model with this configuration, without allocating them."""
    try:
        with torch.device("meta"):
            return sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    except RuntimeError:  # a tensor has more elements than torch can count
        return math.inf


def _honour(meaning: gguf_model.TokenizerMeaning, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Apply the tokenizer settings of the file that transformers ignores, and test the tokenizer."""
    backend = tokenizer.backend_tokenizer
    if meaning.single_digits:
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if meaning.whole_words:
        backend.model.ignore_merges = True
    if meaning.split is None and not meaning.space and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "never"
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_bos_token, tokenizer.add_eos_token = meaning.bos, meaning.eos
    tokenizer.chat_template = meaning.chat_template
    ids = tokenizer("x").input_ids
    begins = bool(ids) and ids[0] == tokenizer.bos_token_id
    ends = bool(ids) and ids[-1] == tokenizer.eos_token_id
    if (begins, ends) != (meaning.bos, meaning.eos):
        raise UserError(
            "tokenizer.ggml.add_bos_token",
            "use the model's safetensors",
            value=meaning.bos,
            why=f"with add_eos_token={readable(meaning.eos)}, its tokenizer does not apply add_bos_token",
            where=source,
        )


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path, source: str) -> None:
    """Save the tokenizer in a form that loads as the same tokenizer.

    By default, transformers would load it as the tokenizer of the model's family, which may split text differently.
    """
    tokenizer.save_pretrained(folder)
    if _reads_alike(tokenizer, AutoTokenizer.from_pretrained(folder)):
        return
    saved = folder / "tokenizer_config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    if not _reads_alike(tokenizer, AutoTokenizer.from_pretrained(folder)):
        raise UserError(
            "tokenizer.ggml.pre",
            "use the model's safetensors",
            why="its tokenizer gives different tokens after it is saved and loaded",
            where=source,
        )


def _reads_alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return all(one(text).input_ids == other(text).input_ids for text in _TRIED)


def _refuse_other_tokens(
    file: gguf_file.GgufFile, meaning: gguf_model.Meaning, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise `UserError` if a special token of the file has another id in the tokenizer, or is split into several
    tokens."""
    source, tokens = file.parts[0], file.keys["tokenizer.ggml.tokens"]
    for name, said in (("bos", meaning.bos), ("eos", meaning.stop_ids[0])):
        if (made := getattr(tokenizer, f"{name}_token_id")) != said:
            raise UserError(
                f"tokenizer.ggml.{name}_token_id",
                "use the model's safetensors",
                value=said,
                why=f"its converted tokenizer has {made}",
                where=source,
            )
    for id, (token, kind) in enumerate(zip(tokens, file.keys["tokenizer.ggml.token_type"], strict=True)):
        if kind in _WHOLE and tokenizer(token, add_special_tokens=False).input_ids != [id]:
            raise UserError(
                "tokenizer.ggml.tokens",
                "use the model's safetensors",
                value=token,
                why="it is one token in the file, but the converted tokenizer splits it or gives it another id",
                where=source,
            )
