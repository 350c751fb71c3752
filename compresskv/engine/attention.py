"""The interface to transformers: an attention function that is registered with transformers and runs a backend.

transformers passes it the RoPE'd queries, keys and values of any decoder. In the prefill, the prompt uses full causal
attention; then the cache layer of the keys receives the queries of the observation window. After eviction, new tokens
attend to the kept tokens.

No class is patched: a model opts in with `set_attn_implementation`, and `attached` restores its own implementation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from compresskv.engine.backends import SDPA, Backend, FlashAttention2, MaskedSDPA, Varlen, _backends
from compresskv.engine.model_shape import head_dim
from compresskv.engine.rotary import steady
from compresskv.errors import UserError
from compresskv.hardware import BACKENDS, unserved

# transformers treats every name that contains "flash" as flash-attn.
_BACKENDS: dict[str, tuple[str, type[Backend]]] = {
    "sdpa": ("compresskv_sdpa", SDPA),
    "sdpa on cuda": ("compresskv_sdpa_cuda", MaskedSDPA),
    "varlen": ("compresskv_varlen", Varlen),
    "flash_attention_2": ("compresskv_fa2", FlashAttention2),
}


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention with eviction, in the signature that transformers calls.

    query [batch, q_heads, new, d], key and value [batch, kv_heads, *, d] -> [batch, new, q_heads, d]. Raises
    `UserError` for unsupported features: logit soft-capping, attention sinks, position biases, masks of any kind.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UserError(
                name, "use another model", why=f"{type(module).__name__} uses {name}, which eviction does not support"
            )
    if attention_mask is not None:
        raise UserError(
            "attention_mask",
            "pass one unpadded prompt at a time",
            why="a custom attention mask is not supported under eviction",
        )
    if module.training and dropout:
        raise UserError("model", "call model.eval()", why="it is in training mode with attention dropout")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    backend = _backends[module.config._attn_implementation]
    layer = getattr(key, "cache_layer", None)
    if layer is not None and layer.rows is not None:
        if layer.masked is not None:
            query = query.index_fill(1, layer.masked, 0)
        if layer.index == 0 and query.shape[2] > 1:
            _refuse_gaps(kwargs.get("position_ids"), layer.seen - query.shape[2])
        out = backend.decode(query, key, value, layer.rows, scaling)
        if layer.on_decode is not None:
            layer.on_decode(layer.index, query)
        return out, None
    out = backend.prefill(query, key, value, scaling, sliding_window)
    if layer is not None:
        layer.observe(query, scaling)
    return out.transpose(1, 2).contiguous(), None


def _refuse_gaps(positions: Tensor | None, start: int) -> None:
    """Raise `UserError` unless `positions` [rows, new], if the model passes them, continue from `start`."""
    if positions is not None and positions[0, 0] != start:
        raise UserError(
            "position_ids",
            f"pass only the tokens from position {start} on; transformers' prompt lookup and assisted decoding, which "
            "pass tokens again, are not supported",
            value=int(positions[0, 0]),
            why=f"a compressed cache of {start} tokens cannot continue at this position",
        )


def refuse_padding(attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Mask function of `attention_forward`. It creates no mask, and refuses padded batches."""
    if attention_mask is not None and not attention_mask.all():
        raise UserError(
            "attention_mask", "pass one unpadded prompt at a time", why="a padded batch is not supported under eviction"
        )


def register(name: str, backend: Backend) -> str:
    """Register `backend` with transformers as the attention implementation `name`, and return the name."""
    _backends[name] = backend
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, refuse_padding)
    return name


def forget(name: str) -> None:
    """Unregister the backend `name`, and release it."""
    _backends.pop(name, None)


def is_attached(config: PreTrainedConfig) -> bool:
    """Return whether the model of this configuration currently runs with our attention."""
    return config._attn_implementation in _backends


@contextmanager
def attached(model: PreTrainedModel, backend: str = "sdpa") -> Iterator[PreTrainedModel]:
    """Run `model` with our attention over `backend` (`hardware.BACKENDS`), and restore its own on leaving.

    If its RoPE depends on the length of the text, each text gets its own frequencies: see rotary.py. Raises `UserError`
    for a model that the backend or this attention function cannot run.
    """
    if backend in BACKENDS and (reason := _unserved(model, backend)):
        raise UserError("backend", f"{reason[1]}, or use sdpa", value=backend, why=reason[0])
    name = backend if backend in _backends else _known(backend, model.device)
    original, cudnn = model.config._attn_implementation, torch.backends.cuda.cudnn_sdp_enabled()
    model.set_attn_implementation(name)
    # cuDNN plans again for every new shape and stride, which takes tens of milliseconds on the host.
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        if not is_attached(model.config):
            raise UserError(
                "model",
                "choose a model of another architecture",
                value=type(model).__name__,
                why="it computes attention with its own code, which eviction cannot replace",
            )
        with steady(model):
            yield model
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        model.set_attn_implementation(original)


def own_backend(model: PreTrainedModel) -> str:
    """Return the backend for a user's model: flash-attn if the model uses it, else varlen if it runs, else sdpa."""
    if model.config._attn_implementation == "flash_attention_2":
        return "flash_attention_2"
    return "sdpa" if _unserved(model, "varlen") else "varlen"


def _unserved(model: PreTrainedModel, backend: str) -> tuple[str, str] | None:
    """Return why `backend` cannot run `model`, and the fix; None if it can."""
    cuda = model.device.type == "cuda"
    capability = torch.cuda.get_device_capability(model.device) if cuda else None
    return unserved(backend, model.dtype, capability, head_dim(model.config))


def _known(backend: str, device: torch.device) -> str:
    """Return the name of a backend, which is registered on first use."""
    name, kind = _BACKENDS["sdpa on cuda" if (backend, device.type) == ("sdpa", "cuda") else backend]
    return name if name in _backends else register(name, kind())
