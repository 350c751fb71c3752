"""The names of methods as papers write them."""

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
"""By the names of `conf/method`, and of compositions as results have them, in the order of the paper."""


def named(method: str) -> str:
    """The name of a method of `conf/method`; a composition without a name is named by its parts."""
    if method in METHODS:
        return METHODS[method]
    name, _, parts = method.partition("-")
    return f"{METHODS.get(name, name)} ({parts})" if parts else name


def place_of(method: str) -> int:
    """The place of a method in the paper's order; unknown methods come last."""
    return list(METHODS).index(method) if method in METHODS else len(METHODS)
