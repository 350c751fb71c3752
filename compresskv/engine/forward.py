"""Feed tokens to all rows of a cache after eviction."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.cache import EvictedCache
from compresskv.installed import cache_argument


@torch.no_grad()
def forward_tokens(model: PreTrainedModel, tokens: Tensor, cache: EvictedCache, position: int | Tensor) -> Tensor:
    """Feed one new token per row, `tokens` [rows]. Return the next logits [rows, vocabulary], float32.

    `position`: one position for all rows, or one per row: [rows], int64. `model` must be `attached`.
    """
    if not isinstance(position, Tensor):
        position = torch.full_like(tokens, position)
    out = model(
        input_ids=tokens[:, None],
        position_ids=position[:, None],
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(model): cache},
    )
    return out.logits[:, -1].float()


@torch.no_grad()
def forward_given(
    model: PreTrainedModel, tokens: Tensor, rows: int, cache: EvictedCache, position: int, logits_to_keep: int = 0
) -> Tensor:
    """Feed `tokens` [new] or [rows, new], from `position` on, to each of `rows`. Return logits [rows, new, vocabulary].

    Logits are float32; the last logits predict the token after all of `tokens`. `logits_to_keep`: number of last
    positions whose logits are computed; 0: all. `model` must be `attached`.
    """
    positions = torch.arange(position, position + tokens.shape[-1], device=tokens.device)
    out = model(
        input_ids=tokens.expand(rows, -1),
        position_ids=positions.expand(rows, -1),
        use_cache=True,
        logits_to_keep=logits_to_keep,
        **{cache_argument(model): cache},
    )
    return out.logits.float()
