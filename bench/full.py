"""`make bench-full`: the paper's 31 settings together and one by one, kvpress, and the memory of many prompts.

A ratio below 1 means that this harness is better. The last line of the output is one JSON object of all ratios.
"""

import json
import time

import torch

from bench.kvpress import sweep_vs_kvpress
from bench.main import prompts
from bench.settings import BUDGETS, METHODS, default_model, settings
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.memory import gpus
from compresskv.engine.prefill import forward_prompt
from compresskv.engine.setting import FULL, Setting
from compresskv.models import LoadedModel
from evals.efficiency.measure import give_back, peak, reset_peak, resident_bytes
from evals.running.forecast import forecast


def peak_forecast(model: LoadedModel) -> float:
    """Return the peak memory of all settings of a 4K prompt, right after loading the model, over the forecast."""
    chosen, (ids,) = settings(model, METHODS, BUDGETS), prompts(model, [4000])
    give_back()
    expected = forecast(model.model, chosen, ids.numel(), 32, backend=model.backend)
    reset_peak(gpus(model.model))
    with attached(model.model):
        generate(model.model, ids, chosen, Stopping(32))
    measured = sum(peak(gpus(model.model)) or [0])
    print(f"peak of {len(chosen)} settings: {measured / 1e6:.0f} MB; {expected}", flush=True)
    return round(measured / expected.peak, 4)


def sweep_31(model: LoadedModel) -> dict[str, float]:
    """Return the time of all settings of five 4K prompts together over one run per setting.

    Each generates exactly 32 new tokens. The tokens of both are compared, too.
    """
    chosen, texts, stopping = settings(model, METHODS, BUDGETS), prompts(model, [4000] * 5), Stopping(32)
    with attached(model.model):
        generate(model.model, texts[0][:500], chosen, stopping)
        started = time.perf_counter()
        together = [generate(model.model, ids, chosen, stopping) for ids in texts]
        shared = time.perf_counter() - started
        print(f"{len(chosen)} settings together: {shared:.1f} s", flush=True)
        started = time.perf_counter()
        alone = [[generate(model.model, ids, [setting], stopping)[0] for ids in texts] for setting in chosen]
        separate = time.perf_counter() - started
    print(f"{len(chosen)} settings one by one: {separate:.1f} s", flush=True)
    same = [
        sum(a == b for a, b in zip(alone[s][p].tokens, together[p][s].tokens, strict=True)) / 32
        for s in range(len(chosen))
        for p in range(len(texts))
    ]
    whole = sum(share == 1 for share in same) / len(same)
    tokens = sum(same) / len(same)
    print(f"{model.dtype}: {100 * whole:.1f} % of the answers are identical, {100 * tokens:.1f} % of their tokens")
    return {"sweep_31_vs_separate": round(shared / separate, 4), "sweep_31_identical_answers": round(whole, 4)}


@torch.no_grad()
def held_memory(model: LoadedModel) -> float:
    """Return the memory of the caches of eight 8K prompts at budget 256 over that of the full caches.

    The memory of the model is not included.
    """
    texts = prompts(model, [8000] * 8)

    def held(setting: Setting) -> int:
        before = resident_bytes()
        caches = []
        with attached(model.model):
            for ids in texts:
                caches.append(LayerwiseCache(model.model.config, setting, ids.numel(), room=32))
                forward_prompt(model.model, ids, caches[-1], None)
        return resident_bytes() - before

    (compressed,) = settings(model, ["compresskv"], [256])
    # Run a first prefill to grow the allocator's pools, which then serve both sides.
    with attached(model.model):
        first = LayerwiseCache(model.model.config, compressed, texts[0].numel(), 32)
        forward_prompt(model.model, texts[0], first, None)
    small, large = held(compressed), held(FULL)
    print(f"eight 8K prompts held: {small / 1e6:.0f} MB at budget 256, {large / 1e6:.0f} MB in full", flush=True)
    return round(small / large, 4)


def main() -> None:
    model = default_model()
    ratios = {
        "peak_vs_forecast": peak_forecast(model),
        "held_8x8k_memory": held_memory(model),
        **sweep_vs_kvpress(model),
        **sweep_31(model),
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
