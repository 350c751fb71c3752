"""The content of a calibration file."""

from typing import Any


def record(layers: int = 2, q_heads: int = 4, **changes: Any) -> dict[str, Any]:
    """Return a held-out calibration of a tiny model; `changes` replace or add fields.

    Semantic scores increase from head to head, with smaller steps in later layers. All layers have equal shares.
    """
    semantic = [[(head + 1) / (layer + 1) for head in range(q_heads)] for layer in range(layers)]
    return {
        "model": "tiny",
        "source": "held_out",
        "observation": {"window": 8, "kernel": 5, "pooling": "average"},
        "heads": 1,
        "layer_scores": [1 / layers] * layers,
        "head_scores": {"semantic": semantic},
        **changes,
    }
