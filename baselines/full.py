"""The full cache: nothing is evicted. The reference for errors, memory and latency; it ignores the budget."""

from baselines.streaming_llm import StreamingLLMScorer
from baselines.uniform import UniformAllocator
from compresskv.eviction import EvictionMethod
from compresskv.generation import Setting

FULL = Setting(EvictionMethod(StreamingLLMScorer(), UniformAllocator()), None)
"""Without a budget the whole prompt is kept, so neither scorer nor allocator is ever asked."""
