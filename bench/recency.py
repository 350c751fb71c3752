"""`python -m bench.recency`: which part of a scorer decides how far a setting is from the full cache while it decodes.

SnapKV and StreamingLLM differ in four things: the most recent tokens that are kept whatever their score, the queries
that score the others, pooling, and the first four tokens. Here each is changed by itself. All settings of a prompt read
the full cache's greedy continuation, as `fidelity.tokens` measures it. Prompts: three of a lighthouse keeper, a bicycle
and a desert, then requests of eval=longgen. Each prompt is one line of JSON.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from baselines.random_keep import RandomScorer
from baselines.snapkv import SnapKVScorer
from baselines.streaming_llm import SINKS, StreamingLLMScorer
from baselines.uniform import UniformAllocator
from bench.settings import default_model, job
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.setting import Setting
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores, Observation, Scorer
from compresskv.models import LoadedModel
from compresskv.schedule import EvictionSchedule
from evals.haystack import essays
from evals.longgen.config import Longgen
from evals.longgen.evaluation import LonggenTask
from evals.tables.statistics import mean_difference

REFERENCE = (
    "Write a long story about a lighthouse keeper who learns to read the sea.",
    "Explain step by step how a bicycle is built, from raw metal to the first ride.",
    "List forty things a traveller should know before crossing a desert, with a sentence on each.",
)

SNAPKV, STREAMING = "SnapKV", "StreamingLLM"
"""The settings that the others are compared with."""

USUAL = Observation(8)
"""SnapKV's defaults: the last 8 queries, and average pooling over 5 tokens."""


@dataclass(frozen=True)
class Kept:
    """A `scorer` that always keeps the last `recent` tokens (at least its window) and optionally the `sinks`."""

    scorer: Scorer
    recent: int
    sinks: bool = False

    @property
    def window(self) -> int:
        return max(self.recent, self.scorer.window)

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        found = self.scorer(layer)
        scores = found.scores[:, : layer.length - self.window].float().clone()
        if self.sinks:
            scores[:, :SINKS] += 1 + scores.amax() - scores.amin()
        return replace(found, scores=scores)


@dataclass(frozen=True)
class Recent:
    """Keep the most recent tokens, without sinks."""

    window: int = 1

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        past = layer.length - self.window
        return LayerScores(torch.arange(past, dtype=torch.float32, device=layer.keys.device).expand(layer.kv_heads, -1))


def scorers() -> dict[str, Scorer]:
    """Return every scorer by name. The last `kept` tokens are always kept."""
    snapkv = SnapKVScorer(USUAL)
    return {
        STREAMING: StreamingLLMScorer(),
        "StreamingLLM without sinks": Recent(),
        SNAPKV: snapkv,
        "SnapKV without pooling": SnapKVScorer(Observation(8, 1)),
        "SnapKV with sinks": Kept(snapkv, 8, sinks=True),
        **{f"SnapKV, {window} queries and kept": SnapKVScorer(Observation(window)) for window in (4, 16, 32, 60)},
        **{f"SnapKV, {recent} kept": Kept(snapkv, recent) for recent in (16, 32, 60)},
        "SnapKV with sinks, 32 kept": Kept(snapkv, 32, sinks=True),
        "random": RandomScorer(),
        "random with sinks": Kept(RandomScorer(), 8, sinks=True),
        "random with sinks, 32 kept": Kept(RandomScorer(), 32, sinks=True),
    }


def settings(budgets: Sequence[int]) -> dict[str, Setting]:
    """Return the settings by `<budget>: <name>`."""
    uniform = UniformAllocator()
    return {
        f"{budget}: {name}": Setting(EvictionMethod(scorer, uniform), budget)
        for budget in budgets
        for name, scorer in scorers().items()
        if scorer.window < budget
    }


def prompts(model: LoadedModel, longgen: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the three prompts of the reference, then the first `longgen` requests of eval=longgen."""
    made = job("eval=longgen")
    assert isinstance(made.eval, Longgen)
    text = "\n".join(essays(made.eval.haystack))
    for number, request in enumerate(REFERENCE):
        start = 20_000 * number
        yield f"reference-{number}", model.encode(model.chat(f"{text[start : start + 1500]}\n\n{request}"))
    task = LonggenTask(replace(made.eval, prompts=max(longgen, 1)), model, made.protocol)
    for id in list(task.sample_ids)[:longgen]:
        yield id, task.sample(id).ids


def measured(
    model: LoadedModel, chosen: dict[str, Setting], ids: torch.Tensor, tokens: int, interval: int
) -> dict[str, list[float]]:
    """Return the KL in nats of each token from the second on, by setting."""
    schedule = EvictionSchedule("prompt+decode", interval)
    with attached(model.model):
        found = generate(
            model.model, ids, list(chosen.values()), Stopping(1), reference=[], schedule=schedule, along=tokens
        )
    return {name: list(each.fidelity.kl_per_token) for name, each in zip(chosen, found, strict=True) if each.fidelity}


def table(found: dict[str, dict[str, list[float]]], ids: Sequence[str]) -> list[str]:
    """Print the mean KL over prompts, and the differences from SnapKV and StreamingLLM with 95 % intervals."""
    names = list(next(iter(found.values())))
    means = {name: np.array([np.mean(found[id][name]) for id in ids]) for name in names}
    lines = []
    for name in names:
        budget, _, _ = name.partition(": ")
        row = [f"{name:<52}", f"{means[name].mean():.4f}"]
        for other in (SNAPKV, STREAMING):
            difference = mean_difference([list(means[name] - means[f"{budget}: {other}"])])
            low, high = difference.interval or (float("nan"), float("nan"))
            row.append(f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append("  ".join(row))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--interval", type=int, default=32)
    parser.add_argument("--longgen", type=int, default=12, help="requests of eval=longgen, beside the three prompts")
    options = parser.parse_args()
    model, chosen = default_model("model.dtype=float32"), settings(options.budgets)
    found: dict[str, dict[str, list[float]]] = {}
    for id, ids in prompts(model, options.longgen):
        found[id] = measured(model, chosen, ids, options.tokens, options.interval)
        means = {name: round(fmean(kl), 5) for name, kl in found[id].items()}
        print(json.dumps({"prompt": id, "tokens": ids.numel(), "kl": means}), flush=True)
    for title, of in (("reference", True), ("longgen", False)):
        if group := [id for id in found if id.startswith("reference") == of]:
            print(f"\n{title}, {len(group)} prompts; KL, minus SnapKV's, minus StreamingLLM's")
            print("\n".join(table(found, group)))


if __name__ == "__main__":
    main()
