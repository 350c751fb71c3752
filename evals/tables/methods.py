"""Names of methods and settings as papers write them."""

from __future__ import annotations

from dataclasses import dataclass

from compresskv.budget import Budget

METHODS = {
    "full": "FullKV",
    "streaming_llm": "StreamingLLM",
    "snapkv": "SnapKV",
    "pyramidkv": "PyramidKV",
    "cake": "CAKE",
    "headkv": "HeadKV",
    "adakv": "AdaKV",
    "compresskv": "CompressKV",
    "headcompresskv": "HeadCompressKV",
    "adacompresskv": "AdaCompressKV",
    "random": "Random",
    "tova": "TOVA",
    "knorm": "Key norm",
    "h2o": "H2O",
    "rkv": "R-KV",
    "oracle": "Oracle",
    # Compositions with a name in the paper (Table 3).
    "compresskv-uniform": "SnapKV + semantic heads",
    "snapkv-layer_error": "SnapKV + layer budgets",
    # The presses of kvpress.
    "kvpress.adakv": "AdaKV (kvpress)",
    "kvpress.adakv_compactor": "AdaKV + Compactor (kvpress)",
    "kvpress.adakv_snapkv": "AdaKV + SnapKV (kvpress)",
    "kvpress.block": "Block (kvpress)",
    "kvpress.cap": "CapKV (kvpress)",
    "kvpress.chunk": "Chunk (kvpress)",
    "kvpress.chunkkv": "ChunkKV (kvpress)",
    "kvpress.compactor": "Compactor (kvpress)",
    "kvpress.critical_adakv": "CriticalAdaKV (kvpress)",
    "kvpress.criticalkv": "CriticalKV (kvpress)",
    "kvpress.cur": "CurDKV (kvpress)",
    "kvpress.entropy_gated_chunkkv": "EntropyGatedChunkKV (kvpress)",
    "kvpress.expected_attention": "ExpectedAttention (kvpress)",
    "kvpress.keydiff": "KeyDiff (kvpress)",
    "kvpress.knorm": "Key norm (kvpress)",
    "kvpress.lagkv": "LagKV (kvpress)",
    "kvpress.leverage_score": "LeverageScore (kvpress)",
    "kvpress.non_causal_attn": "NonCausalAttn (kvpress)",
    "kvpress.observed_attention": "ObservedAttention (kvpress)",
    "kvpress.pyramidkv": "PyramidKV (kvpress)",
    "kvpress.random": "Random (kvpress)",
    "kvpress.snapkv": "SnapKV (kvpress)",
    "kvpress.streaming_llm": "StreamingLLM (kvpress)",
    "kvpress.tova": "TOVA (kvpress)",
}
"""Display names by the names of `conf/method`, and of compositions as in results, in the order of the paper."""


def named(method: str) -> str:
    """Return the display name of a method of `conf/method`; a composition without a name is named by its parts."""
    if method in METHODS:
        return METHODS[method]
    name, _, parts = method.partition("-")
    shown = METHODS.get(name, name)
    if not parts:
        return shown
    return f"{shown.removesuffix(')')}, {parts})" if shown.endswith(")") else f"{shown} ({parts})"


def place_of(method: str) -> int:
    """Return the place of a method in the paper's order; unknown methods come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)


@dataclass(frozen=True)
class Name:
    """The name of a setting: its method as papers write it, its budget (None: the full cache) and its protocol.

    `variant` holds further values that distinguish it from other settings, such as `window=16`. `marked`: whether the
    protocol is part of the text, because other settings have a different protocol. `when` is the time of eviction
    (`compresskv.schedule`), which is part of the text unless it is `prompt`.
    """

    method: str
    budget: Budget | None = None
    protocol: str = "corrected"
    variant: str = ""
    marked: bool = False
    when: str = "prompt"

    def __str__(self) -> str:
        return self._joined("" if self.budget is None else str(self.budget))

    @property
    def label(self) -> str:
        """The name without the budget."""
        return self._joined("")

    def _joined(self, budget: str) -> str:
        protocol = f"({self.protocol})" if self.marked else ""
        when = "" if self.when == "prompt" else f"({self.when})"
        return " ".join(filter(None, (self.method, budget, protocol, when, self.variant)))
