"""Record the attention of streaming and retrieval heads while the model answers needle prompts, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from compresskv.calibration import HeadScores, Place, best_first
from compresskv.calibration.probe import full_cache, full_prefill, probed, step
from compresskv.calibration.retrieval_heads import step_attention
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import label_stem
from evals.attention.config import Attention
from evals.calibration.detection import answered
from evals.files import write_json
from evals.job import Job, Sample
from evals.niah.evaluation import NiahTask
from evals.progress import Progress
from evals.results.provenance import environment
from evals.running.methods import context_of

RANKINGS = ("traditional", "semantic")

DIGITS = 5
"""Decimal places of attention weights in files."""

SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
"""Translation of the characters that tokenizers write for white space in tokens."""


def run(model: LoadedModel, config: Attention, jobs: Sequence[Job], progress: Progress) -> Path:
    """Write a file for every prompt under every protocol of the jobs, and return the model's folder."""
    folder = jobs[0].results / "attention" / model.name
    for job in {job.protocol: job for job in jobs}.values():
        calibrated = context_of(model, job).calibrated()
        scores = {name: calibrated.scores(calibrated.kind_of_scores(name, job.protocol)) for name in RANKINGS}
        task = NiahTask(config, model, job.protocol)
        with progress.track(f"{model.name} {config.name}", list(task.sample_ids)) as ids:
            for id in ids:
                observed = observe(model, task.sample(id), config)
                needle = needle_span(observed.prompt, task.cells[id].needle.answer, model.tokenizer)
                about = {"model": model.name, "protocol": job.protocol.label, "sample": id, "dtype": model.dtype}
                found = description(observed, needle, scores, config, model.tokenizer)
                path = folder / f"{label_stem(job.protocol.label)}-{id}.json"
                write_json(path, {**about, **found, "environment": environment()})
    return folder


@dataclass(frozen=True, eq=False)
class Observed:
    """The attention of all heads on one prompt.

    `prompt`: ids [prompt], on the CPU. `answer`: the decoded tokens. `attention` [steps, layers, query heads, prompt],
    float32: attention of each decode step to the prompt.
    """

    prompt: Tensor
    answer: list[int]
    attention: Tensor


def observe(model: LoadedModel, sample: Sample, config: Attention) -> Observed:
    """Decode greedily from the last prompt token, until the answer ends or has `config.max_new_tokens` tokens."""
    ids = sample.ids
    step_of: list[Tensor] = []
    steps: list[Tensor] = []
    tokens: list[int] = []

    def watch(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float, out: Tensor) -> None:
        step_of.append(step_attention(query, keys, scaling)[:, : ids.numel()].cpu())

    with torch.no_grad():
        prompt = full_prefill(model.model, ids[:-1], 1, ids.numel())
        with probed(model.model, model.layers, watch):
            cache = full_cache(prompt, config.max_new_tokens)
            token = int(ids[-1])
            for index in range(config.max_new_tokens):
                step_of.clear()
                token = int(step(model.model, cache, token, prompt.length + index).argmax())
                steps.append(torch.stack(step_of))
                tokens.append(token)
                if answered(model, tokens):
                    break
    return Observed(ids.cpu(), tokens, torch.stack(steps))


def needle_span(ids: Tensor, needle: str, tokenizer: PreTrainedTokenizerBase) -> range:
    """Return the token positions of the last `needle` in a prompt. Raises `UserError` if it does not occur."""
    pieces = [piece.translate(SPACES) for piece in tokenizer.convert_ids_to_tokens(ids.tolist())]
    text = "".join(pieces)
    start = text.rfind(needle)
    if start < 0:
        raise UserError(
            "eval.answer", "give an answer that is part of the needle", value=needle, why="not in the prompt"
        )
    bounds = pairwise(accumulate(map(len, pieces), initial=0))
    inside = [place for place, (begin, end) in enumerate(bounds) if end > start and begin < start + len(needle)]
    return range(inside[0], inside[-1] + 1)


def description(
    observed: Observed,
    needle: range,
    scores: Mapping[str, HeadScores],
    config: Attention,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Return the data of a figure as JSON: the parts of the prompt, and the mean attention of each chosen head."""
    length = observed.prompt.numel()
    recent = range(max(length - config.recent, needle.stop, config.sinks), length)
    parts = {"sinks": range(config.sinks), "needle": needle, "recent": recent}
    in_parts = {name: observed.attention[..., part.start : part.stop].sum(-1) for name, part in parts.items()}
    # The product is large only for heads that attend to both parts; many heads attend only to sinks.
    streaming = in_parts["sinks"].mean(0) * in_parts["recent"].mean(0)
    chosen = chosen_heads(streaming, scores, config.heads)
    heads = []
    for kind, (layer, head) in chosen:
        mean = observed.attention[:, layer, head].mean(0)
        of_steps = {name: rounded(values[:, layer, head]) for name, values in in_parts.items()}
        ranks = {name: best_first(table).index((layer, head)) + 1 for name, table in scores.items()}
        place = {"kind": kind, "layer": layer, "head": head, "ranks": ranks}
        heads.append({**place, "attention": rounded(mean), "by_step": of_steps})
    return {
        "answer": tokenizer.decode(observed.answer, skip_special_tokens=True),
        "prompt_tokens": length,
        "tokens": tokenizer.convert_ids_to_tokens(observed.prompt.tolist()),
        "parts": {name: [part.start, part.stop] for name, part in parts.items()},
        "heads": heads,
    }


def chosen_heads(streaming: Tensor, scores: Mapping[str, HeadScores], count: int) -> list[tuple[str, Place]]:
    """Choose `count` distinct heads of each kind: the best by `streaming` [layers, q_heads], then by each ranking."""
    by_streaming = tuple(tuple(layer) for layer in streaming.tolist())
    best_of_all = {place for table in scores.values() for place in best_first(table)[:count]}
    rankings = {"streaming": by_streaming, **{name: scores[name] for name in RANKINGS}}
    chosen: list[tuple[str, Place]] = []
    for kind, table in rankings.items():
        taken = {place for _, place in chosen} | (best_of_all if kind == "streaming" else set())
        free = [place for place in best_first(table) if place not in taken]
        chosen += [(kind, place) for place in free[:count]]
    return chosen


def rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
