"""The device, dtype and attention kernel of a model."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch

from compresskv.errors import UserError
from compresskv.flash import Reason, flash_version, unusable
from compresskv.model_config import ModelConfig

AMPERE = (8, 0)
"""The first CUDA capability with bfloat16 in hardware, and the first that FlashAttention-2 runs on."""

MOST_HEAD_DIM = 256
"""The largest head dimension of FlashAttention-2."""


@dataclass(frozen=True)
class Hardware:
    """The resolved hardware of a run.

    `device` is a torch device or "map"; `backend` is a name in `BACKENDS`; `notes` are shown to the user.
    """

    device: str
    dtype: torch.dtype
    backend: str
    notes: tuple[str, ...] = ()


def choose(config: ModelConfig) -> Hardware:
    """Resolve `config` for this machine. Raises `UserError` for a choice that cannot run here."""
    device = _device(config.device)
    capability = _capability(device)
    dtype = _dtype(config.dtype, capability)
    if config.backend not in ("auto", *BACKENDS):
        raise UserError("model.backend", f"choose auto, {', '.join(BACKENDS)}", value=config.backend)
    asked = list(BACKENDS) if config.backend == "auto" else [config.backend]
    reasons = {name: unserved(name, dtype, capability) for name in asked}
    served = [name for name, reason in reasons.items() if reason is None]
    if not served:
        why, fix = reasons[config.backend] or ("", "")
        raise UserError("model.backend", f"{fix}, or set model.backend=sdpa", value=config.backend, why=why)
    notes: tuple[str, ...] = ()
    flash = reasons.get("flash_attention_2")
    if served[0] == "sdpa" and flash and not _unsuited(dtype, capability) and flash_version() is not None:
        notes = (f"model.backend=auto is sdpa: {': '.join(flash)}",)
    return Hardware(device, dtype, served[0], notes)


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if asked not in ("map", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise UserError("model.device", "choose auto, map, cpu, cuda or cuda:<number>", value=asked)
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "model.device", "set model.device=cpu", value=asked, why=f"torch {torch.__version__} sees no CUDA device"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(
            "model.device", f"choose one of {torch.cuda.device_count()} CUDA devices, counted from cuda:0", value=asked
        )
    return asked


def _capability(device: str) -> tuple[int, int] | None:
    """Return the lowest CUDA capability among the GPUs that the model uses; None without CUDA."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    if device == "map":
        return min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return torch.cuda.get_device_capability(torch.device(device))


def _dtype(asked: str, capability: tuple[int, int] | None) -> torch.dtype:
    if asked != "auto":
        if asked not in ("float32", "bfloat16", "float16"):
            raise UserError("model.dtype", "choose auto, float32, bfloat16 or float16", value=asked)
        return getattr(torch, asked)
    if capability is None:
        processor = torch.cpu.get_capabilities()
        fast = processor.get("avx512_bf16") or processor.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    # `torch.cuda.is_bf16_supported` also counts emulation.
    return torch.bfloat16 if capability >= AMPERE else torch.float16


def for_heads(chosen: Hardware, config: ModelConfig, head_dim: int) -> Hardware:
    """Return `chosen`, or sdpa if its backend cannot run the heads of the loaded model.

    Raises `UserError` if the user asked for that backend.
    """
    reason = None if chosen.backend == "sdpa" else _unsuited_heads(head_dim)
    if reason is None:
        return chosen
    if config.backend != "auto":
        raise UserError("model.backend", "set model.backend=sdpa", value=config.backend, why=reason[0])
    return replace(chosen, backend="sdpa")


def unserved(
    backend: str, dtype: torch.dtype, capability: tuple[int, int] | None, head_dim: int | None = None
) -> Reason | None:
    """Return why `backend` cannot run in this dtype and on a GPU of this capability (None: no GPU), or None if it can.

    `head_dim` (None: not known yet) is the number of values of a key.
    """
    installed = BACKENDS[backend]
    if installed is None:
        return None
    return _unsuited(dtype, capability) or _unsuited_heads(head_dim) or installed()


def _unsuited_heads(head_dim: int | None) -> Reason | None:
    if head_dim is None or (head_dim % 8 == 0 and head_dim <= MOST_HEAD_DIM):
        return None
    return (
        f"its kernel needs a head dimension of at most {MOST_HEAD_DIM}, a multiple of 8, but the model has {head_dim}",
        "use another model",
    )


def _no_varlen() -> Reason | None:
    """Return why torch's `varlen_attn` cannot decode from a cache."""
    try:
        arguments = set(inspect.signature(import_module("torch.nn.attention.varlen").varlen_attn).parameters)
    except (ImportError, AttributeError):
        arguments = set()
    if {"seqused_k", "enable_gqa", "num_splits"} <= arguments:
        return None
    return f"varlen_attn of torch {torch.__version__} has no seqused_k", "install torch 2.12 or newer"


def _unsuited(dtype: torch.dtype, capability: tuple[int, int] | None) -> Reason | None:
    """Return why FlashAttention-2 cannot run on this device, or in this dtype."""
    if capability is None:
        return "it runs on CUDA only", "set model.device to a CUDA device"
    if capability < AMPERE:
        present = ".".join(map(str, capability))
        return f"it needs an Ampere GPU or a newer GPU (capability 8.0), but this GPU has {present}", "use another GPU"
    if dtype == torch.float32:
        return "it does not support float32", "set model.dtype to bfloat16 or float16"
    return None


BACKENDS: dict[str, Callable[[], Reason | None] | None] = {
    "varlen": _no_varlen,
    "flash_attention_2": unusable,
    "sdpa": None,
}
"""The backends, in the order that `auto` tries them, each with a check of what it needs installed (None: nothing)."""
