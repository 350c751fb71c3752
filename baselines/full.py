"""The full cache: nothing is evicted. The reference for errors, memory and latency; it ignores the budget."""

from baselines.streaming_llm import StreamingLLMScorer
from compresskv.context import Context
from compresskv.eviction import Scorer


def scorer(context: Context) -> Scorer:
    """Never asked, since a setting without a budget keeps the whole prompt."""
    return StreamingLLMScorer()
