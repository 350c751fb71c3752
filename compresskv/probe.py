"""Check that eviction supports a model exactly, by running it once before the first prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import SDPA
from compresskv.engine.decode import decode_cache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.model_shape import head_dim, kv_heads
from compresskv.engine.prefill import prefill
from compresskv.engine.rotary import beyond_boundaries, spanning
from compresskv.engine.setting import FULL
from compresskv.errors import PromptError, UserError

PROMPT, NEW = 12, 2
"""Number of prompt tokens, and of tokens that are decoded after the prompt."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Allowed difference between the logits of our attention and of the model's own attention, relative to their spread.

It allows for another order of summation in each dtype. Missing parts of attention cause far larger differences, which
show in float32.
"""


def refuse_unserved(model: PreTrainedModel) -> None:
    """Run a short random prompt and a few new tokens with everything kept, and compare with the model's own attention.

    Leaves the model and all random states unchanged. Raises `UserError`, which names the architecture and the reason,
    if a layer bypasses our attention function or its cache, or if a logit differs.
    """
    name = type(model).__name__
    try:
        with _undisturbed(model):
            reason = _unserved(model)
    except (PromptError, torch.OutOfMemoryError):
        raise  # not caused by the architecture
    except UserError as error:
        reason = error.why
    except Exception as error:  # each architecture's code fails differently
        said = " ".join(str(error).split())[:200]
        reason = f"its code fails with {type(error).__name__}: {said}"
    if reason:
        raise UserError(
            "model", "choose a model of another architecture", value=name, why=f"eviction does not support it: {reason}"
        )


def _unserved(model: PreTrainedModel) -> str | None:
    """Return why this model is not supported; None if it is supported."""
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder model"
    kinds, arguments = get_layer_types_and_kwargs(config)
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        return f"it has layers of {' and '.join(unknown)}"
    try:
        head_dim(config), kv_heads(config)
    except Exception:  # transformers' own class of error for a field that differs from layer to layer
        return "its layers differ in the number or the size of their KV heads"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (PROMPT + NEW,), generator=generator).to(model.device)
    expected = model(input_ids=ids[None], use_cache=False).logits[0, PROMPT - 1 :].float()
    witness = Witness()
    with _attached(model, witness):
        prompt = prefill(model, ids[:PROMPT], 1)
        if reason := witness.missed(kinds, [options.get("sliding_window") for options in arguments]):
            return reason
        cache = decode_cache(prompt, [prompt.kept(FULL)], NEW)
        steps = [prompt.logits]
        for position in range(PROMPT, PROMPT + NEW):
            steps.append(forward_tokens(model, ids[position, None], cache, position)[0])
    return _different(torch.stack(steps), expected, model.dtype) or _length_unseen(model)


@torch.no_grad()
def backend_fault(model: PreTrainedModel, backend: str) -> str | None:
    """Return why `backend` cannot decode `model`, or None if it can.

    Decodes a few tokens from rows of unequal lengths, and compares with torch's sdpa in its plain form: a kernel of
    another version than the tested one may fail, or may read the rows differently. Raises out-of-memory errors.
    """
    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (PROMPT + NEW,), generator=generator).to(model.device)

    def steps(name: str) -> Tensor:
        with attached(model, name):
            prompt = prefill(model, ids[:PROMPT], 1)
            whole = prompt.kept(FULL)
            part = [[head[number % 3 :] for number, head in enumerate(layer)] for layer in whole]
            tail = [[head[-2:] for head in layer] for layer in whole]
            cache = decode_cache(prompt, [whole, part, tail], NEW)
            return torch.cat(
                [forward_tokens(model, ids[at].expand(3), cache, at) for at in range(PROMPT, PROMPT + NEW)]
            )

    with _undisturbed(model):
        name = register("compresskv_plain", SDPA())
        try:
            expected = steps(name)
        finally:
            forget(name)
        try:
            found = steps(backend)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # kernels fail in several ways
            return f"it fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return _different(found, expected, model.dtype, "the logits of plain sdpa")


def _length_unseen(model: PreTrainedModel) -> str | None:
    """Return a reason if the first queries or keys depend on the text's length in a way that rotary.py does not handle.

    Compares two texts with the same beginning. One has a token beyond every boundary of the model's RoPE. The other is
    only declared to be that long, like the chunks of a long prompt.
    """
    length = beyond_boundaries(model)
    if length is None:
        return None
    witness = Witness()
    ids = torch.arange(3, device=model.device)[None]
    with _attached(model, witness):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, length - 1]], device=model.device), use_cache=False)
        with spanning(model, length):
            model(input_ids=ids, position_ids=ids, use_cache=False)
    layers = len(witness.first) // 2
    for far, said in zip(witness.first[:layers], witness.first[layers:], strict=True):
        if (far - said).norm() > TOLERANCE[model.dtype] * said.norm():
            return f"its queries or keys depend on the length of the text (tried with {length} tokens)"
    return None


@torch.no_grad()
def learned_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions `model` has learned, found by running it; None for a model without a position table."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings()]
    if not tables:
        return None
    lookups = Lookups()
    token = 2 if getattr(model.config, "pad_token_id", None) == 1 else 1  # some models do not count padding
    with lookups:  # one token three times, so that only position lookups have consecutive rows
        model(input_ids=torch.full((1, LOOKED_UP), token, device=model.device), use_cache=False)
    return min(lookups.room, default=None)


LOOKED_UP = 3


class Lookups(TorchFunctionMode):
    """Records the size of each position table that a forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.room: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.embedding:
            rows = args[0].flatten().tolist()
            if rows == list(range(rows[0], rows[0] + LOOKED_UP)):
                self.room.append(args[1].shape[0] - rows[0])
        return func(*args, **(kwargs or {}))


class Witness(SDPA):
    """SDPA that records each attention call of the prompt: whether its keys come from the cache, and its sliding
    window.

    `first`: queries and keys of the first two tokens, flattened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, int | None]] = []
        self.first: list[Tensor] = []

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        self.calls.append((hasattr(key, "cache_layer"), sliding_window))
        self.first.append(torch.cat([states[:, :, :2].flatten().float() for states in (query, key)]))
        return super().prefill(query, key, value, scaling, sliding_window)

    def missed(self, kinds: list[str], windows: list[int | None]) -> str | None:
        """Return why layers of these kinds and sliding windows cannot be evicted; None if they can."""
        if len(self.calls) < len(kinds):
            return f"attention of {len(kinds) - len(self.calls)} of its {len(kinds)} layers is computed by its own code"
        for kind, window, (cached, seen) in zip(kinds, windows, self.calls, strict=True):
            if kind == "full_attention" and not cached:
                return "it rebuilds keys after the cache, as latent attention (MLA) does"
            if seen != window:
                return f"a layer of {kind} attends with a sliding window of {seen}, but its configuration has {window}"
        return None


def _different(
    ours: Tensor, expected: Tensor, dtype: torch.dtype, whose: str = "the logits of its own attention"
) -> str | None:
    """Compare logits [steps, vocabulary] float32, and return a reason if they differ."""
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = ((ours - expected).norm(dim=-1) / spread.clamp(min=1e-9)).max().item()
    if error <= TOLERANCE[dtype]:
        return None
    return f"for the same tokens, its logits differ from {whose} by {error:.2g} of their spread"


@contextmanager
def _attached(model: PreTrainedModel, witness: Witness) -> Iterator[None]:
    name = register("compresskv_witness", witness)
    try:
        with attached(model, name):
            yield
    finally:
        forget(name)


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[Any]:
    """Disable gradients, and restore random states on leaving."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=gpus):
        yield
