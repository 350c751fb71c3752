"""The names of methods and models as papers write them."""

from collections.abc import Mapping
from typing import Any

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
    # Compositions that the paper has a name for (Table 3).
    "compresskv-uniform": "SnapKV + semantic heads",
    "snapkv-layer_error": "SnapKV + layer budgets",
}
"""By the names of `conf/method`, and of compositions as results have them."""

PUBLISHED = {"SnapKV + semantic heads + layer budgets": "CompressKV"}
"""Methods that results/paper calls otherwise than `METHODS`."""


def method_label(method: str, config: Mapping[str, Any]) -> str:
    """The name of a result's `method`; a composition without one is named by its parts."""
    if method in METHODS:
        return METHODS[method]
    name, _, parts = method.partition("-")
    return f"{METHODS.get(name, name)} ({parts})" if parts else name


def heads_label(method: str, config: Mapping[str, Any]) -> str:
    """How many retrieval heads of a layer select, as in the paper's Table 2."""
    return f"top-{config['method']['scorer']['heads']} heads"


def ranking_label(method: str, config: Mapping[str, Any]) -> str:
    """By which scores the heads that select were chosen."""
    return f"{config['method']['scorer']['head_scores']} heads"


def calibration_label(method: str, config: Mapping[str, Any]) -> str:
    """Method and the calibration that it used."""
    return f"{method_label(method, config)}, calibration {config.get('calibration')}"


def tokens_label(tokens: int) -> str:
    """A length such as 4K."""
    return f"{tokens / 1000:g}K" if tokens >= 1000 else str(tokens)
