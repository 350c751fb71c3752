"""AdaCompressKV (CompressKV's second version): semantic heads rank the tokens; AdaKV's rule sets the number per head.

All KV heads of a layer share one ranking of tokens, and each keeps the first tokens of this ranking, so the kept sets
are nested. AdaKV's rule with SnapKV's scores decides how many tokens each head keeps, and CompressKV's layer errors
decide the budget of the layer.
"""

from typing import Annotated, Literal

from baselines.adakv import AdaKVAllocator, ContestedScorer
from baselines.snapkv import Grouping, SnapKVScorer
from compresskv import layer_error, semantic_heads
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.methods import declares
from compresskv.selecting_heads import Heads


def scorer(
    context: Context,
    *,
    heads: Heads,
    head_scores: Literal["semantic", "traditional"],
    contest_grouping: Grouping | None,
) -> ContestedScorer:
    """Build the scorer. `heads` and `head_scores` as for CompressKV; `contest_grouping` as for AdaKV."""
    contest = SnapKVScorer(context.scoring, contest_grouping or context.protocol.gqa_grouping)
    return ContestedScorer(semantic_heads.scorer(context, heads=heads, head_scores=head_scores), contest)


@declares(heads="compared")
def allocator(
    context: Context, *, alpha: Annotated[float, Ge(0), Le(1)], layers: Literal["layer_error", "uniform"]
) -> AdaKVAllocator:
    """Build the allocator.

    `alpha`: the part of a layer's budget that its heads share equally. `layers`: how the layer budgets are set.
    """
    by_layer = layer_error.allocator(context) if layers == "layer_error" else None
    return AdaKVAllocator(alpha, context.protocol.exact_budget, by_layer)
