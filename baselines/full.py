"""The full cache: nothing is evicted. The reference for errors, memory and latency; it ignores the budget."""

from baselines.streaming_llm import StreamingLLMScorer
from compresskv.context import Context
from compresskv.eviction import Scorer


def scorer(context: Context) -> Scorer:
    """Without a budget the whole prompt is kept, so the scorer is never asked."""
    return StreamingLLMScorer()
