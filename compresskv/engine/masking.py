"""Head masking: what a model still finds when chosen heads attend uniformly (CompressKV, Figs. 7 and 23).

The query of a masked head is zero after RoPE, so its attention is uniform over the cache, and its output is the mean of
all values. Only decoding is masked, starting with the last prompt token. The tokens before it are prefilled without a
mask.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.generation import Generation
from compresskv.engine.prefill import prefill
from compresskv.engine.rotary import refuse_crossing, spanning
from compresskv.engine.setting import FULL
from compresskv.errors import UserError

Heads = tuple[tuple[int, ...], ...]
"""Query heads of every layer that evicts."""


@torch.no_grad()
def generate_masked(
    model: PreTrainedModel, ids: Tensor, choices: Sequence[Heads], stopping: Stopping, chunk: int | None = None
) -> Iterator[Generation]:
    """Yield the full cache's answers to `ids` [prompt] with each of `choices` masked, all from one prefill.

    Each answer decodes alone, so that its tokens do not depend on the other answers. `model` must be `attached`. Raises
    `UserError` for a prompt of a single token.
    """
    if ids.numel() < 2:
        raise UserError("prompt", "give at least two tokens", why="head masking decodes the last token of the prompt")
    length = ids.numel()
    refuse_crossing(model, length, stopping.max_new_tokens)
    with spanning(model, length):
        prompt = prefill(model, ids[:-1], FULL.window, chunk)
    kept = prompt.kept(FULL)
    tally = [[length] * layer.kv_heads for layer in prompt.layers]
    for heads in choices:
        cache = decode_cache(prompt, [kept], stopping.max_new_tokens + 1)
        for layer, of_prompt, masked in zip(cache.evicting, prompt.layers, heads, strict=True):
            if masked:
                layer.masked = torch.tensor(masked, device=of_prompt.keys.device)
        logits = forward_tokens(model, ids[-1:], cache, length - 1)[0]
        tokens = decode(model, cache, logits, length, 1, stopping, ids)[0]
        yield Generation(tokens, tally, prompt.cache.kept_bytes(tally))
