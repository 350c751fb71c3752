"""`make bench`: compare speed and memory with plain transformers, as ratios measured in one run of the default model.

A ratio below 1 means that this harness is better; `fidelity_cost` is a share of a sweep's time. The last line of the
output is one JSON object of all ratios.
"""

import json
import resource
import time
from functools import partial

import torch
from transformers import Cache, DynamicCache

from bench.measure import alternate
from bench.settings import default_model, job, settings
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, answering, decode_cache
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.prefill import prefill
from compresskv.engine.prefixes import PrefixStore, chunk_names, in_prefix_order
from compresskv.engine.setting import FULL, Setting
from compresskv.installed import cache_argument
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask

CHUNK = 640
"""Tokens per chunk of a prefill in which prompts share chunks."""


def prompts(model: LoadedModel, lengths: list[int]) -> list[torch.Tensor]:
    """Return needle prompts of about these lengths, at different depths."""
    evaluation = job(f"eval.lengths={sorted(set(lengths))}").eval
    assert isinstance(evaluation, Niah)
    task = NiahTask(evaluation, model, EvaluationProtocol())
    return [task.prompt(length, (i + 1) / (len(lengths) + 1)) for i, length in enumerate(lengths)]


@torch.no_grad()
def prefill_ratio(model: LoadedModel, setting: Setting, length: int, rounds: int) -> float:
    """Return the time of a prefill with in-layer eviction over that of transformers with sdpa and a DynamicCache."""
    (ids,) = prompts(model, [length])

    def ours() -> None:
        with attached(model.model):
            cache = LayerwiseCache(model.model.config, setting, ids.numel(), room=32)
            model.model(ids[None], use_cache=True, logits_to_keep=1, **{cache_argument(model.model): cache})

    def theirs() -> None:
        cache = DynamicCache(config=model.model.config)
        model.model(ids[None], use_cache=True, logits_to_keep=1, **{cache_argument(model.model): cache})

    seconds = alternate({"ours": ours, "theirs": theirs}, rounds)
    return _show(f"prefill of {length} tokens", seconds)


@torch.no_grad()
def decode_ratio(model: LoadedModel, rows: int, kept: int, steps: int) -> float:
    """Return the time of a decode step of the engine over that of transformers.

    transformers uses a DynamicCache of equal length and no mask.
    """
    (ids,) = prompts(model, [kept])
    ids = torch.cat([ids, ids[:8]])[:kept]
    with attached(model.model):
        prompt = prefill(model.model, ids, 1)
    keys = [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in prompt.layers]

    def ours() -> None:
        with attached(model.model):
            _steps(model, cache_of["ours"], rows, ids.numel(), steps)

    def theirs() -> None:
        _steps(model, cache_of["theirs"], rows, ids.numel(), steps)

    cache_of: dict[str, Cache] = {}
    seconds = []
    for _ in range(3):
        with attached(model.model):
            cache_of["ours"] = decode_cache(prompt, [prompt.kept(FULL)] * rows, steps * 2)
        cache_of["theirs"] = DynamicCache(keys)
        seconds.append(alternate({"ours": ours, "theirs": theirs}, 1))
    best = {name: min(s[name] for s in seconds) / steps for name in ("ours", "theirs")}
    return _show(f"decode step, {rows} rows of {kept} tokens", best)


@torch.no_grad()
def ragged_ratio(model: LoadedModel, rows: int, budget: int, steps: int) -> float:
    """Return the time of a decode step with a different length for every layer and head over one with equal lengths.

    The total number of tokens is the same.
    """
    (ids,) = prompts(model, [2000])
    ragged, equal = settings(model, ["headkv", "snapkv"], [budget])
    with attached(model.model):
        prompt = prefill(model.model, ids, 8)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(3):
            caches = {
                name: decode_cache(prompt, [prompt.kept(setting)] * rows, 2 * steps)
                for name, setting in (("ours", ragged), ("theirs", equal))
            }
            runs = {name: partial(_steps, model, cache, rows, ids.numel(), steps) for name, cache in caches.items()}
            for name, value in alternate(runs, 1).items():
                seconds[name].append(value / steps)
    best = {name: min(values) for name, values in seconds.items()}
    return _show(f"decode step, {rows} rows of {budget} tokens on average, ragged over equal", best)


@torch.no_grad()
def evicting_ratio(model: LoadedModel, rows: int, budget: int, rounds: int) -> float:
    """Return the time of a decode step with an eviction after every 64 tokens over one without.

    Each run has 64 steps, so there is one eviction.
    """
    (ids,) = prompts(model, [2000])
    schedule = EvictionSchedule("prompt+decode", 64)
    chosen = settings(model, ["snapkv"], [budget]) * rows
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with attached(model.model):
        prompt = prefill(model.model, ids, chosen[0].window)
        kept = [prompt.kept(chosen[0])] * rows
        for _ in range(rounds):
            for name, when in (("ours", schedule), ("theirs", AFTER_PROMPT)):
                cache, _ = answering(model.model, prompt, kept, chosen, schedule.interval, when)
                started = time.perf_counter()
                _steps(model, cache, rows, ids.numel(), schedule.interval)
                seconds[name].append((time.perf_counter() - started) / schedule.interval)
    best = {name: min(values) for name, values in seconds.items()}
    return _show(f"decode step, {rows} rows of {budget} tokens, evicting over not", best)


def _steps(model: LoadedModel, cache: Cache, rows: int, start: int, steps: int) -> None:
    token = torch.full((rows, 1), 20)
    for step in range(steps):
        positions = torch.full((rows, 1), start + step)
        model.model(
            token, position_ids=positions, use_cache=True, logits_to_keep=1, **{cache_argument(model.model): cache}
        )


def sweep_ratio(model: LoadedModel, lengths: list[int], methods: list[str], budgets: list[int]) -> float:
    """Return the time of all settings of each prompt together over one run per setting.

    Each generates exactly 32 new tokens.
    """
    chosen, texts = settings(model, methods, budgets), prompts(model, lengths)
    stopping = Stopping(32)

    def together() -> None:
        for ids in texts:
            generate(model.model, ids, chosen, stopping)

    def separate() -> None:
        for setting in chosen:
            for ids in texts:
                generate(model.model, ids, [setting], stopping)

    with attached(model.model):
        generate(model.model, texts[0][:500], chosen, stopping)
        seconds = alternate_once({"ours": together, "theirs": separate})
    return _show(f"{len(chosen)} settings × {len(texts)} prompts of {lengths}", seconds)


def fidelity_cost(model: LoadedModel, length: int, methods: list[str], budgets: list[int], rounds: int) -> float:
    """Return the time that fidelity=true adds to a sweep, as a share of the sweep's time.

    Each setting generates 32 new tokens; the reference has 32 tokens, too.
    """
    chosen, (ids,) = settings(model, methods, budgets), prompts(model, [length])

    def sweep(reference: list[int] | None) -> None:
        generate(model.model, ids, chosen, Stopping(32), reference=reference)

    with attached(model.model):
        seconds = alternate({"ours": partial(sweep, ids[:32].tolist()), "theirs": partial(sweep, None)}, rounds)
    return round(_show(f"{len(chosen)} settings × a prompt of {length}, with fidelity over without", seconds) - 1, 4)


def chunked_ratio(model: LoadedModel, length: int, rounds: int) -> float:
    """Return the time of a prefill in chunks of `CHUNK` tokens over that of the whole prompt at once."""
    (ids,) = prompts(model, [length])
    with attached(model.model):
        whole, chunked = (partial(prefill, model.model, ids, 8, chunk) for chunk in (None, CHUNK))
        seconds = alternate({"ours": chunked, "theirs": whole}, rounds)
    return _show(f"prefill of {length} tokens in chunks of {CHUNK}", seconds)


def prefix_ratios(model: LoadedModel, lengths: list[int], depths: int) -> dict[str, float]:
    """Return tokens and time of the chunked prefills of a needle grid with reuse of chunks, over those without."""
    evaluation = job(f"eval.lengths={lengths}", f"eval.depths={depths}").eval
    assert isinstance(evaluation, Niah)
    task = NiahTask(evaluation, model, EvaluationProtocol())
    grid = {id: task.sample(id).ids for id in task.sample_ids}
    order = in_prefix_order({id: chunk_names(ids, CHUNK) for id, ids in grid.items()})
    store = PrefixStore(Footprint(model.model, task.longest_prompt).prompt)

    def prefill_all(prefixes: PrefixStore | None) -> None:
        for id in order:
            prefill(model.model, grid[id], 8, CHUNK, (), prefixes)

    with attached(model.model):
        prefill(model.model, grid[order[0]], 8, CHUNK)
        seconds = alternate_once({"ours": partial(prefill_all, store), "theirs": partial(prefill_all, None)})
    tokens = round(store.computed / sum(ids.numel() for ids in grid.values()), 4)
    print(f"{len(grid)} needle prompts of {lengths} tokens: {store.computed} tokens prefilled: {tokens}", flush=True)
    return {"prefix_tokens": tokens, "prefix_time": _show("their prefills", seconds)}


def alternate_once(contenders) -> dict[str, float]:
    """Run each contender once, for runs that are too long for `alternate`, and return the seconds."""
    seconds = {}
    for name, run in contenders.items():
        started = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - started
    return seconds


def _show(name: str, seconds: dict[str, float]) -> float:
    ratio = seconds["ours"] / seconds["theirs"]
    print(f"{name}: {seconds['ours']:.4f} s over {seconds['theirs']:.4f} s: {ratio:.3f}", flush=True)
    return round(ratio, 4)


def main() -> None:
    model = default_model()
    compressed = settings(model, ["compresskv"], [256])[0]
    ratios = {
        "prefill_2k": prefill_ratio(model, compressed, 2000, rounds=9),
        "prefill_4k": prefill_ratio(model, compressed, 4000, rounds=5),
        "prefill_8k": prefill_ratio(model, compressed, 8000, rounds=3),
        "decode_30x256": decode_ratio(model, 30, 256, steps=12),
        "decode_1x4096": decode_ratio(model, 1, 4096, steps=16),
        "decode_1x256": decode_ratio(model, 1, 256, steps=24),
        "decode_ragged_vs_equal": ragged_ratio(model, 10, 256, steps=12),
        "decode_evicting": evicting_ratio(model, 30, 256, rounds=3),
        "sweep_10_vs_separate": sweep_ratio(
            model, [2000, 3000, 4000], ["full", "streaming_llm", "snapkv", "compresskv"], [64, 128, 256]
        ),
        "fidelity_cost": fidelity_cost(
            model, 3000, ["full", "streaming_llm", "snapkv", "compresskv"], [64, 128, 256], rounds=2
        ),
    }
    ratios |= {
        "chunked_4k": chunked_ratio(model, 4000, rounds=3),
        "chunked_8k": chunked_ratio(model, 8000, rounds=2),
        **prefix_ratios(model, [1000, 2000, 3000, 4000], depths=5),
    }
    ratios["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
