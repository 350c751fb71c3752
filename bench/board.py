"""`make bench-board`: compare a board of 100 settings from one prefill per context with kvpress, setting by setting.

Contexts of about 4,000 tokens are compressed before their question is read. This harness runs all settings. kvpress
runs a sample of them, and its mean time per setting is used for the others. A ratio below 1 means that this harness is
faster. The last line of the output is one JSON object.
"""

import argparse
import json
import random
import time
from itertools import cycle

import torch

from bench.kvpress import ENVIRONMENT, Answers, Side, kvpress
from bench.parity import PRESSES
from bench.settings import default_model, job
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import Generation, generate
from compresskv.engine.setting import Setting
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask
from evals.running.methods import build_method

BUDGETS = ["75%", "50%", "25%", "12.5%", "10%"]
"""Budgets of kvpress's leaderboard, and one more."""

METHODS = [name for name in PRESSES if name not in ("block", "chunk", "entropy_gated_chunkkv", "pyramidkv")]
"""Methods that both sides have; with BUDGETS, the 100 settings."""

NEW_TOKENS = 32
SAMPLE = 8
ROUNDED = 40
"""Tokens by which the sides may differ: kvpress keeps whole chunks of 20 and drops a remainder; our budget is exact."""

Name = tuple[str, str]
"""A method and a budget."""


def board_vs_kvpress(model: LoadedModel, length: int, contexts: int, sample: int, methods: list[str]) -> float:
    """Return our time for all settings of each context from one prefill, over kvpress's time for them one by one.

    kvpress's time is measured on `sample` settings of every context. Both sides generate exactly 32 new tokens.
    """
    names = [(method, budget) for method in methods for budget in BUDGETS]
    sampled = drawn(methods, sample)
    built = {name: build_method(model, job(f"method=kvpress/{name}")) for name in methods}
    settings = [Setting(built[method], job(f"budget={budget}").budget) for method, budget in names]
    stopping = Stopping(NEW_TOKENS)
    seconds = 0.0
    ours: list[list[Generation]] = []
    theirs: list[Answers] = []
    with kvpress(model, [side(*name) for name in sampled], NEW_TOKENS) as run_theirs, attached(model.model):
        texts = questions(model, length, contexts)
        ids, context = questions(model, 1000, 1)[0]
        generate(model.model, ids, settings, stopping, context=context)
        run_theirs(ids, context)
        # Alternate the sides for each context, so that a change in the machine's speed affects both.
        for ids, context in texts:
            started = time.perf_counter()
            ours.append(generate(model.model, ids, settings, stopping, context=context))
            seconds += time.perf_counter() - started
            theirs.append(run_theirs(ids, context))
    for place, name in enumerate(sampled):
        setting = names.index(name)
        compare(name, [each[setting] for each in ours], [each[place] for each in theirs])
    return extrapolated(seconds, [answer["seconds"] for each in theirs for answer in each], len(names), contexts)


def extrapolated(seconds: float, theirs: list[float], settings: int, contexts: int) -> float:
    """Return our seconds over kvpress's for all settings, extrapolated from the settings that kvpress ran."""
    mean = sum(theirs) / len(theirs)
    total = mean * settings * contexts
    ratio = seconds / total
    print(
        f"{settings} settings × {contexts} contexts: {seconds:.1f} s from one prefill per context; kvpress takes "
        f"{mean:.2f} s for a setting ({min(theirs):.2f} to {max(theirs):.2f} in {len(theirs)} runs of "
        f"{len(theirs) // contexts} settings), so {total:.0f} s for all, extrapolated: {ratio:.4f}",
        flush=True,
    )
    return round(ratio, 4)


def drawn(methods: list[str], sample: int) -> list[Name]:
    """Return a sample of all settings: methods drawn at random, budgets in turn. It is the same in every run."""
    chosen = random.Random(0).sample(methods, min(sample, len(methods)))
    return list(zip(chosen, cycle(BUDGETS), strict=False))


def side(method: str, budget: str) -> Side:
    """Return the setting for kvpress's side."""
    press, fields = PRESSES[method]
    return press, fields, float(budget.removesuffix("%")) / 100


def questions(model: LoadedModel, length: int, count: int) -> list[tuple[torch.Tensor, int]]:
    """Return needle prompts of about `length` tokens at different depths.

    Each is its ids and the number of ids that precede the question.
    """
    evaluation = job(f"eval.lengths=[{length}]", f"eval.depths={max(count, 2)}").eval
    assert isinstance(evaluation, Niah)
    task = NiahTask(evaluation, model, EvaluationProtocol())
    samples = [task.sample(id) for id in task.sample_ids[:count]]
    return [(sample.ids, sample.context) for sample in samples if sample.context is not None]


def compare(name: Name, ours: list[Generation], theirs: Answers) -> None:
    """Print what both sides kept for one setting over all contexts. Raises `RuntimeError` if the work differs."""
    kept = [generation.realised_budget for generation in ours]
    kept_theirs = [sum(answer["kept"]) / len(answer["kept"]) for answer in theirs]
    counts = {len(tokens) for tokens in [*(g.tokens for g in ours), *(answer["tokens"] for answer in theirs)]}
    same = sum(generation.tokens == answer["tokens"] for generation, answer in zip(ours, theirs, strict=True))
    label = " ".join(name)
    seconds = sum(answer["seconds"] for answer in theirs)
    print(
        f"{label:28} kept {_mean(kept):7.2f}, kvpress {_mean(kept_theirs):7.2f} in {seconds:5.1f} s; "
        f"{same} of {len(ours)} answers identical"
    )
    if counts != {NEW_TOKENS} or any(abs(a - b) > ROUNDED for a, b in zip(kept, kept_theirs, strict=True)):
        raise RuntimeError(f"{label}: {counts} new tokens, {kept} kept by us and {kept_theirs} by kvpress")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=4000, help="tokens of a prompt; 4000")
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="settings that kvpress runs; 8")
    parser.add_argument("--press", action="append", choices=METHODS, help="one method of conf/method/kvpress; all")
    options = parser.parse_args()
    if not (ENVIRONMENT / ".ready").exists():
        raise SystemExit("kvpress is not installed: run `make bench-board`")
    model = default_model()
    ratio = board_vs_kvpress(model, options.length, options.contexts, options.sample, options.press or METHODS)
    print(json.dumps({"board_vs_kvpress": ratio}))


if __name__ == "__main__":
    main()
