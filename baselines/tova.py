"""After TOVA (Oren et al. 2024, arXiv 2401.06104): keep the tokens that the last token attends to.

The original evicts at every decoding step and averages over all heads of a layer. Here eviction happens once, after the
prompt, and each KV head is scored by its own query heads, as for the other methods.
"""

from dataclasses import replace

from baselines.snapkv import SnapKVScorer
from compresskv.context import Context
from compresskv.methods import declares


@declares(window=1)
def scorer(context: Context) -> SnapKVScorer:
    """Build SnapKV's scorer with a window of one position and no pooling."""
    return SnapKVScorer(replace(context.scoring, window=1, kernel=1))
