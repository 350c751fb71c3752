"""`python -m bench.limits`: measure where the time of a sweep goes, and how close it is to the machine's limits.

Rates are compared with those of plain matrix products of the same shapes and of a plain copy, measured in the same run.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from bench.main import prompts
from bench.settings import BUDGETS, METHODS, default_model, settings
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.prefill import prefill
from compresskv.engine.rows import BucketedRows
from compresskv.engine.setting import Setting
from compresskv.installed import cache_argument
from compresskv.models import LoadedModel

NEW_TOKENS = 32


def seconds_of(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median seconds of `work` over `rounds` rounds, after one warm-up round."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


@torch.no_grad()
def phases(model: LoadedModel, chosen: list[Setting], ids: Tensor) -> dict[str, float]:
    """Return the seconds of each step from `ids` [prompt] to the tokens of all settings.

    The full cache decodes separately.
    """
    spent: dict[str, float] = {}
    compressed, full = ([s for s in chosen if (s.budget is None) is whole] for whole in (False, True))

    def timed(name: str, work: Callable):
        started = time.perf_counter()
        result = work()
        spent[name] = time.perf_counter() - started
        return result

    with attached(model.model):
        window = max(setting.window for setting in chosen)
        prompt = timed("prefill", lambda: prefill(model.model, ids, window))
        timed("scores", lambda: prompt.score(chosen))
        kept = timed("selection", lambda: [prompt.kept(setting) for setting in compressed])
        cache = timed("gathering", lambda: decode_cache(prompt, kept, NEW_TOKENS))
        buckets = sum(len(layer.rows.buckets) for layer in cache.evicting if isinstance(layer.rows, BucketedRows))
        timed(
            f"decoding of {len(compressed)} settings",
            lambda: decode(model.model, cache, prompt.logits, ids.numel(), len(compressed), Stopping(NEW_TOKENS)),
        )
        if full:
            cache = timed("gathering, full", lambda: decode_cache(prompt, [prompt.kept(full[0])], NEW_TOKENS))
            timed(
                "decoding of the full cache",
                lambda: decode(model.model, cache, prompt.logits, ids.numel(), 1, Stopping(NEW_TOKENS)),
            )
    print(f"{buckets / len(cache.evicting):.1f} buckets per layer")
    return spent


def show(title: str, spent: dict[str, float]) -> None:
    total = sum(spent.values())
    print(f"{title}: {total:.2f} s a prompt")
    for name, seconds in spent.items():
        print(f"  {name:28} {seconds:6.2f} s  {100 * seconds / total:4.0f} %")


@torch.no_grad()
def prefill_rate(model: LoadedModel, ids: Tensor) -> None:
    """Print the operations per second of a prefill, compared with its matrix products and its attention alone."""
    config, length = model.model.config, ids.numel()
    products = [weight for name, weight in model.model.named_parameters() if "layers" in name and weight.dim() == 2]
    heads, head_dim = model.q_heads, config.hidden_size // model.q_heads
    linear = 2 * length * sum(weight.numel() for weight in products)
    # Two products over half of the square, since attention is causal.
    attention = 2 * 2 * head_dim * heads * (length * length / 2) * model.layers
    with attached(model.model):
        taken = seconds_of(lambda: prefill(model.model, ids, 8))
    inputs = {weight.shape[1]: torch.randn(length, weight.shape[1], dtype=weight.dtype) for weight in products}
    bare = seconds_of(lambda: [inputs[weight.shape[1]] @ weight.T for weight in products])
    query = torch.randn(1, heads, length, head_dim, dtype=products[0].dtype)
    keys = torch.randn(1, model.kv_heads, length, head_dim, dtype=products[0].dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    attending = model.layers * seconds_of(lambda: attend(query, keys, keys, is_causal=True, enable_gqa=True))
    square = torch.randn(4096, 4096, dtype=products[0].dtype)
    peak = 2 * 4096**3 / seconds_of(lambda: square @ square)
    print(
        f"prefill of {length} tokens: {(linear + attention) / 1e12:.2f} TFLOP ({linear / 1e12:.2f} in products, "
        f"{attention / 1e12:.2f} in attention) in {taken:.2f} s: {(linear + attention) / taken / 1e12:.2f} TFLOP/s; "
        f"its products alone take {bare:.2f} s ({linear / bare / 1e12:.2f} TFLOP/s), its attention {attending:.2f} s "
        f"({attention / attending / 1e12:.2f}); a product of 4096 × 4096: {peak / 1e12:.2f} TFLOP/s"
    )


@torch.no_grad()
def decode_rate(model: LoadedModel, ids: Tensor, rows: int = 1) -> None:
    """Print the bytes of weights and cache that a decode step reads per second, compared with products and a copy."""
    weights = [weight for weight in model.model.parameters() if weight.dim() == 2]
    with attached(model.model):
        prompt = prefill(model.model, ids, 8)
        cache = decode_cache(
            prompt, [prompt.kept(setting) for setting in [settings(model, ["full"], [1])[0]] * rows], 80
        )
        token, at = torch.full((rows, 1), 20), torch.full((rows, 1), ids.numel())
        read = sum(weight.nbytes for weight in weights) + cache.nbytes
        given = {"position_ids": at, cache_argument(model.model): cache}
        taken = seconds_of(lambda: model.model(token, **given), rounds=40)
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=weight.dtype) for weight in weights}
    bare = seconds_of(lambda: [inputs[weight.shape[1]] @ weight.T for weight in weights], rounds=20)
    block, target = torch.zeros(read, dtype=torch.uint8), torch.zeros(read, dtype=torch.uint8)
    copied = seconds_of(lambda: target.copy_(block), rounds=5)
    print(
        f"decode step, {rows} rows of {ids.numel()} tokens: {read / 1e6:.0f} MB in {1000 * taken:.0f} ms: "
        f"{read / taken / 1e9:.1f} GB/s; its products alone take {1000 * bare:.0f} ms; a copy of as many bytes "
        f"{1000 * copied:.0f} ms ({read / copied / 1e9:.1f} GB/s each way)"
    )


def main() -> None:
    model = default_model()
    short, long = prompts(model, [2000, 4000])
    demo = settings(model, ["full", "streaming_llm", "snapkv", "compresskv"], [128, 256])
    paper = settings(model, METHODS, BUDGETS)
    phases(model, demo, short[:500])
    found = {"demo": phases(model, demo, short), "31 settings": phases(model, paper, long)}
    show(f"the demo's {len(demo)} settings, {short.numel()} tokens", found["demo"])
    show(f"the paper's {len(paper)} settings, {long.numel()} tokens", found["31 settings"])
    prefill_rate(model, long)
    decode_rate(model, short[:256])
    decode_rate(model, short[:256], rows=30)
    decode_rate(model, long)
    print(json.dumps({name: {k: round(v, 3) for k, v in spent.items()} for name, spent in found.items()}))


if __name__ == "__main__":
    main()
