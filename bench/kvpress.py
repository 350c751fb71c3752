"""`make bench-kvpress`: compare the shared sweep with NVIDIA's kvpress, which runs its settings one by one.

Both sides run the paper's settings that kvpress has. A ratio below 1 means that this harness is faster. The last line
of the output is one JSON object.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from baselines.streaming_llm import SINKS
from bench.main import CHUNK, prompts
from bench.settings import BUDGETS, default_model, job, settings
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import Generation, generate
from compresskv.engine.prefixes import PrefixStore
from compresskv.models import LoadedModel

LENGTHS = [4000] * 5
SHARED = ["full", "streaming_llm", "snapkv", "pyramidkv"]
"""The paper's methods that kvpress 0.5.5 has. It does not have CAKE, HeadKV or CompressKV."""

NEW_TOKENS = 32
ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-kvpress"
SIDE = Path(__file__).with_name("kvpress_side.py")

Side = tuple[str | None, dict[str, Any], float | None]
"""A setting for kvpress's side: a press (None: none), its fields, and a number or share of tokens to keep."""

Answers = list[dict[str, Any]]
"""kvpress's answer to a prompt: `seconds`, `tokens` and `kept` (mean tokens by layer) of every setting."""


def sweep_vs_kvpress(
    model: LoadedModel,
    lengths: list[int] = LENGTHS,
    methods: list[str] = SHARED,
    budgets: list[int] = BUDGETS,
) -> dict[str, float]:
    """Return the time of all settings of each prompt together, over kvpress with one run per setting.

    Both sides generate exactly 32 new tokens. Our side runs once with one forward pass per prompt and once with
    `prefill_chunk`: the prompts are the same essays up to their needles and share the chunks before these. If kvpress
    is not installed, print that and return an empty dict.
    """
    if not (ENVIRONMENT / ".ready").exists():
        print("kvpress is not installed, so the comparison is skipped: run `make bench-kvpress`", flush=True)
        return {}
    names = [(method, budget) for method in methods for budget in (budgets if method != "full" else [None])]
    chosen, texts, stopping = settings(model, methods, budgets), prompts(model, lengths), Stopping(NEW_TOKENS)
    ours: list[list[Generation]] = []
    theirs: list[Answers] = []
    seconds, seconds_in_chunks = 0.0, 0.0
    store = PrefixStore(Footprint(model.model, max(lengths)).prompt)
    with kvpress(model, [side(*name) for name in names]) as run_theirs, attached(model.model):
        generate(model.model, texts[0][:500], chosen, stopping)
        run_theirs(texts[0][:500])
        # Alternate the sides for each prompt, so that a change in the machine's speed affects both.
        for ids in texts:
            started = time.perf_counter()
            ours.append(generate(model.model, ids, chosen, stopping))
            seconds += time.perf_counter() - started
            started = time.perf_counter()
            generate(model.model, ids, chosen, stopping, chunk=CHUNK, prefixes=store)
            seconds_in_chunks += time.perf_counter() - started
            theirs.append(run_theirs(ids))
    for number, name in enumerate(names):
        compare(name, [prompt[number] for prompt in ours], [prompt[number] for prompt in theirs])
    separate = sum(answer["seconds"] for prompt in theirs for answer in prompt)
    ratios = {"sweep_vs_kvpress": seconds / separate, "sweep_vs_kvpress_prefixes": seconds_in_chunks / separate}
    print(
        f"{len(chosen)} settings × {len(texts)} prompts of {lengths}, {model.dtype}: {seconds:.1f} s together, ", end=""
    )
    print(f"{seconds_in_chunks:.1f} s in chunks of {CHUNK} that prompts share, {separate:.1f} s with kvpress: ", end="")
    print(", ".join(f"{ratio:.3f}" for ratio in ratios.values()), flush=True)
    return {name: round(ratio, 4) for name, ratio in ratios.items()}


def side(method: str, budget: int | None) -> Side:
    """Return a method of `SHARED` at a budget for kvpress's side, with our window, kernel and sinks."""
    observation = job().observation
    observed = {"window_size": observation.window, "kernel_size": observation.kernel}
    press, fields = {
        "full": (None, {}),
        "streaming_llm": ("StreamingLLMPress", {"n_sink": SINKS}),
        "snapkv": ("SnapKVPress", observed),
        "pyramidkv": ("PyramidKVPress", observed),
    }[method]
    return press, fields, budget


@contextmanager
def kvpress(model: LoadedModel, sides: list[Side], new_tokens: int = NEW_TOKENS) -> Iterator[Callable[..., Answers]]:
    """Provide a function that runs a prompt with kvpress, in a process with the same weights, dtype and threads.

    It takes the token ids [prompt] and the number of ids in the context (None: all); only the context is compressed.
    """
    description = {
        "model": model.model.name_or_path,
        "dtype": model.dtype,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "settings": sides,
        "new_tokens": new_tokens,
    }
    # Isolated: otherwise Python searches the script's folder first and imports this file instead of the real kvpress.
    command = [str(ENVIRONMENT / "bin" / "python"), "-I", str(SIDE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(question: Any) -> Any:
            print(json.dumps(question), file=process.stdin, flush=True)
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                raise SystemExit(f"{SIDE.name} failed: its error is above")
            return json.loads(line)

        print(
            "compared with " + ", ".join(f"{name} {version}" for name, version in ask(description).items()), flush=True
        )
        yield lambda ids, context=None: ask([ids.tolist(), context])


def compare(name: tuple[str, int | None], ours: list[Generation], theirs: Answers) -> None:
    """Print what both sides kept for one setting over all prompts. Raises `RuntimeError` if the work differs."""
    kept = [generation.realised_budget for generation in ours]
    kept_theirs = [sum(answer["kept"]) / len(answer["kept"]) for answer in theirs]
    counts = {len(tokens) for tokens in [*(g.tokens for g in ours), *(answer["tokens"] for answer in theirs)]}
    same = sum(generation.tokens == answer["tokens"] for generation, answer in zip(ours, theirs, strict=True))
    label = name[0] if name[1] is None else f"{name[0]} {name[1]}"
    print(
        f"{label:20} kept {_mean(kept):7.2f}, kvpress {_mean(kept_theirs):7.2f} in "
        f"{sum(answer['seconds'] for answer in theirs):5.1f} s; {same} of {len(ours)} answers identical"
    )
    # kvpress rounds PyramidKV's capacity in each layer, so its mean differs slightly.
    if counts != {NEW_TOKENS} or any(abs(a - b) > 0.5 for a, b in zip(kept, kept_theirs, strict=True)):
        raise RuntimeError(f"{label}: {counts} new tokens, {kept} kept by us and {kept_theirs} by kvpress")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    print(json.dumps(sweep_vs_kvpress(default_model())))


if __name__ == "__main__":
    main()
