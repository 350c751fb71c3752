"""Does eviction serve this model exactly? Asked once, before the first prompt, by running it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv.engine.attention import attached, forget, register
from compresskv.engine.backends import SDPA
from compresskv.engine.decode import decode_cache, forward_tokens
from compresskv.engine.prefill import FULL, prefill
from compresskv.errors import PromptError, UserError

PROMPT, NEW = 12, 2
"""Tokens of the prompt, and tokens that are decoded after it."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""By how much the logits may differ from those of the model's own attention, relative to their spread.

Wide enough for another order of summation in each dtype; an attention that lacks something is off by far more, and its
float32 tells.
"""


def refuse_unserved(model: PreTrainedModel) -> None:
    """Run a short random prompt and a few new tokens with everything kept, and compare with the model's own attention.

    Leaves the model and all random states as they were. Raises `UserError`, which names the architecture and the
    reason, if a layer's attention does not go through ours and its cache, or if a logit differs.
    """
    name = type(model).__name__
    try:
        with _undisturbed(model):
            reason = _unserved(model)
    except (PromptError, torch.OutOfMemoryError):
        raise  # no matter of the architecture
    except UserError as error:
        reason = str(error).partition(": ")[0]
    except Exception as error:  # each architecture's code fails in its own way
        said = " ".join(str(error).split())[:200]
        reason = f"its code fails with {type(error).__name__}: {said}"
    if reason:
        raise UserError(f"{name} is not served by eviction: {reason}: choose a model of another architecture")


def _unserved(model: PreTrainedModel) -> str | None:
    """Why this model is not served, if so."""
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    kinds, arguments = get_layer_types_and_kwargs(config)
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        return f"it has layers of {' and '.join(unknown)}"
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
    return _different(torch.stack(steps), expected, model.dtype)


class Witness(SDPA):
    """SDPA that notes, for each attention call of the prompt, whether its keys are the cache's, and its window."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, int | None]] = []

    def prefill(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None) -> Tensor:
        self.calls.append((hasattr(key, "cache_layer"), sliding_window))
        return super().prefill(query, key, value, scaling, sliding_window)

    def missed(self, kinds: list[str], windows: list[int | None]) -> str | None:
        """What keeps the layers of these kinds and sliding windows from being evicted, if something does."""
        if len(self.calls) < len(kinds):
            return f"attention of {len(kinds) - len(self.calls)} of its {len(kinds)} layers is computed by its own code"
        for kind, window, (cached, seen) in zip(kinds, windows, self.calls, strict=True):
            if kind == "full_attention" and not cached:
                return "it rebuilds keys after the cache, as latent attention (MLA) does"
            if seen != window:
                return f"a layer of {kind} attends with a sliding window of {seen}, its configuration has {window}"
        return None


def _different(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> str | None:
    """Compare logits [steps, vocabulary] float32."""
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    error = ((ours - expected).norm(dim=-1) / spread.clamp(min=1e-9)).max().item()
    if error <= TOLERANCE[dtype]:
        return None
    return f"with everything kept, its logits differ from those of its own attention by {error:.2g} of their spread"


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
    """No gradients, and random states as they were."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices=gpus):
        yield
