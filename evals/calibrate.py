"""Calibrate a model: find its retrieval heads, then its layer errors, and write both to one JSON file.

Two passes over needle prompts, both resumable. The first scores all heads on every prompt that the model answers; the
second measures, on the accepted prompts, how much each layer's output suffers at the smallest budget.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv import calibration
from compresskv.calibration import layer_errors, retrieval_heads
from compresskv.errors import UserError
from compresskv.layer_error import FLOOR
from compresskv.models import LoadedModel
from compresskv.semantic_heads import SemanticHeadScorer
from evals.haystack import Haystack, essays, hide
from evals.progress import Progress
from evals.results.store import SampleStore, write_json

if TYPE_CHECKING:
    from evals.job import Job

ACCEPTED_RECALL = 0.5
"""ROUGE-1 recall of the answer span above which a prompt counts as answered (Wu et al. 2024)."""


KINDS = ("semantic", "semantic_count", "traditional")


@dataclass(frozen=True)
class CalibrateConfig:
    """`conf/eval/calibrate.yaml`; `lengths` in tokens, `depths` evenly spaced from 0 to 100 per cent."""

    name: str
    haystack: str
    lengths: tuple[int, ...]
    depths: int
    max_steps: int
    head_counts: tuple[int, ...]
    minimum_accepted: int
    output: str | None


@dataclass(frozen=True)
class Needle:
    name: str
    needle: str
    question: str
    answer_prefix: str
    answer: str


@dataclass(frozen=True)
class Prompt:
    """One prompt: `ids` [prompt] and the positions of the answer in it."""

    id: str
    needle: Needle
    ids: Tensor
    span: range


def run(model: LoadedModel, job: "Job", progress: Progress) -> Path:
    """Calibrate `model` as `job.eval` says; returns the path written. Raises `UserError` if too few prompts work."""
    config: CalibrateConfig = job.eval
    haystack = last_texts(config)
    identity = {
        "model": [model.fingerprint, model.dtype],
        "haystack": haystack.fingerprint,
        "needles": [vars(needle) for needle in needles()],
        "max_steps": config.max_steps,
    }
    folder = job.results / "runs" / model.name / "calibrate"
    ids = [
        (needle, length, depth)
        for needle in needles()
        for length in config.lengths
        for depth in np.linspace(0, 1, config.depths)
    ]

    heads = SampleStore(folder / f"heads-{_digest(identity)}")
    try:
        with progress.track(f"{model.name} retrieval heads", ids) as steps:
            for needle, length, depth in steps:
                id = f"{needle.name}-L{length}-D{round(100 * depth)}"
                if id not in heads.lines:
                    heads.append(_observe_heads(model, config, make_prompt(model, needle, haystack, length, depth, id)))
        wanted = [f"{needle.name}-L{length}-D{round(100 * depth)}" for needle, length, depth in ids]
        accepted = [heads.lines[id] for id in wanted if heads.lines[id]["recall"] > ACCEPTED_RECALL]
    finally:
        heads.close()
    if len(accepted) < config.minimum_accepted:
        raise UserError(
            f"{model.name} answered {len(accepted)} of {len(wanted)} calibration prompts, fewer than "
            f"eval.minimum_accepted={config.minimum_accepted}: use shorter eval.lengths or another model"
        )
    scores = {kind: torch.tensor([line[kind] for line in accepted]).mean(0) for kind in KINDS}

    errors, chosen = _layer_errors(model, job, haystack, accepted, scores["semantic"], folder, identity, progress)
    record = {
        "model": model.name,
        "source": "held_out",
        "made_by": f"python run.py eval=calibrate model={model.name}",
        "observation": {key: getattr(job.observation, key) for key in ("window", "kernel", "pooling")},
        "heads": chosen,
        "layer_scores": [round(x, 8) for x in layer_errors.share(list(errors[chosen].values())).tolist()],
        "layer_scores_by_head_count": {
            str(count): [round(x, 8) for x in layer_errors.share(list(by_needle.values())).tolist()]
            for count, by_needle in errors.items()
        },
        "mean_error_by_head_count": {str(count): round(_mean(by_needle), 6) for count, by_needle in errors.items()},
        "head_scores": {kind: [[round(x, 6) for x in layer] for layer in s.tolist()] for kind, s in scores.items()},
        "accepted": {n.name: sum(line["id"].startswith(n.name) for line in accepted) for n in needles()},
        "prompts": len(wanted),
        "settings": {
            "lengths": list(config.lengths),
            "depths": config.depths,
            "max_steps": config.max_steps,
            "capacity": FLOOR,
            "error_epsilon": layer_errors.EPSILON,
        },
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "haystack_fingerprint": haystack.fingerprint,
    }
    target = Path(config.output or calibration.FOLDER) / f"{model.name}.held_out.json"
    write_json(target, record)
    progress.console.print(
        f"{len(accepted)} of {len(wanted)} prompts accepted, {chosen} heads a layer; written to {target}",
        soft_wrap=True,
    )
    return target


def needles() -> list[Needle]:
    text = files("evals").joinpath("detection_needles.yaml").read_text()
    return [Needle(**entry) for entry in yaml.safe_load(text)]


def last_texts(config: CalibrateConfig) -> Haystack:
    """The last texts by sorted name, as many as the longest prompt takes."""
    chosen: list[str] = []
    for text in reversed(essays(config.haystack)):
        chosen.insert(0, text)
        if sum(map(len, chosen)) > 6 * max(config.lengths):
            break
    return Haystack("\n".join(chosen))


def make_prompt(model: LoadedModel, needle: Needle, haystack: Haystack, length: int, depth: float, id: str) -> Prompt:
    """A prompt of about `length` tokens with the needle at `depth` (0 to 1), the answer's positions known exactly."""
    if length + 1 > model.window:
        raise UserError(f"eval.lengths: {length} tokens exceed the {model.window}-token window of {model.name}")
    question = f"\n\nBased on the content of the book, Question: {needle.question}"
    overhead = len(model.encode(model.chat(question, needle.answer_prefix)))
    text = f"\n{needle.needle}\n"
    tokens = length - overhead - len(model.tokenizer(text).input_ids)
    hidden = hide(text, haystack.text, tokens, depth, model.tokenizer)
    rendered = model.chat(hidden.text + question, needle.answer_prefix)
    start = rendered.index(needle.needle) + needle.needle.index(needle.answer)
    encoded = model.tokenizer(rendered, add_special_tokens=not model.chat_template, return_offsets_mapping=True)
    inside = [
        i for i, (a, b) in enumerate(encoded.offset_mapping) if a < start + len(needle.answer) and b > start and b > a
    ]
    ids = torch.tensor(encoded.input_ids, device=model.device)
    return Prompt(id, needle, ids, range(inside[0], inside[-1] + 1))


def _observe_heads(model: LoadedModel, config: CalibrateConfig, prompt: Prompt) -> dict[str, Any]:
    from evals.niah.task import rouge1_recall

    def stop(tokens: Sequence[int]) -> bool:
        """At the end of the answer: an EOS, or a newline after text."""
        if tokens[-1] in model.stop_ids:
            return True
        text = model.tokenizer.decode(tokens)
        return "\n" in text and bool(text.split("\n")[0].strip())

    seen = retrieval_heads.observe(model.model, prompt.ids, prompt.span, model.layers, config.max_steps, stop)
    answer = model.tokenizer.decode(seen.tokens, skip_special_tokens=True)
    return {
        "id": prompt.id,
        "answer": answer,
        "recall": rouge1_recall(prompt.needle.answer, answer),
        "tokens": seen.tokens,
        "prompt_tokens": prompt.ids.numel(),
        **{kind: [[round(x, 6) for x in layer] for layer in getattr(seen, kind).tolist()] for kind in KINDS},
    }


def _layer_errors(
    model: LoadedModel,
    job: "Job",
    haystack: Haystack,
    accepted: Sequence[dict[str, Any]],
    semantic: Tensor,
    folder: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> tuple[dict[int, dict[str, Tensor]], int]:
    """Summed errors by head count and needle, [layers] each; and the head count whose mean error is least."""
    config: CalibrateConfig = job.eval
    counts = [count for count in config.head_counts if count <= semantic.shape[1]]
    ranking = semantic.sort(dim=-1, descending=True, stable=True).indices
    scorers = [SemanticHeadScorer(job.observation, tuple(map(tuple, ranking[:, :count].tolist()))) for count in counts]
    projections = _output_projections(model)
    store = SampleStore(folder / f"errors-{_digest([identity, repr(scorers)])}")
    by_name = {needle.name: needle for needle in needles()}
    try:
        with progress.track(f"{model.name} layer errors", accepted) as steps:
            for line in steps:
                if line["id"] in store.lines:
                    continue
                name, length, depth = line["id"].rsplit("-", 2)
                needle = by_name[name]
                fraction = _depth_of(int(depth[1:]), config.depths)
                prompt = make_prompt(model, needle, haystack, int(length[1:]), fraction, line["id"])
                errors = layer_errors.observe(model.model, prompt.ids, line["tokens"], scorers, projections, FLOOR)
                store.append({"id": line["id"], "errors": [[round(x, 6) for x in row] for row in errors.tolist()]})
        sums = {
            count: {
                name: torch.tensor(
                    [store.lines[line["id"]]["errors"][i] for line in accepted if line["id"].rsplit("-", 2)[0] == name]
                ).sum(0)
                for name in by_name
                if any(line["id"].rsplit("-", 2)[0] == name for line in accepted)
            }
            for i, count in enumerate(counts)
        }
    finally:
        store.close()
    return sums, min(counts, key=lambda count: _mean(sums[count]))


def _depth_of(per_cent: int, depths: int) -> float:
    return float(next(d for d in np.linspace(0, 1, depths) if round(100 * d) == per_cent))


def _mean(by_needle: dict[str, Tensor]) -> float:
    return float(torch.stack(list(by_needle.values())).mean())


def _output_projections(model: LoadedModel) -> list[torch.nn.Module]:
    """W_O of every layer that evicts."""
    decoder = model.model.get_decoder()
    kinds, _ = get_layer_types_and_kwargs(model.model.config.get_text_config(decoder=True))
    return [
        layer.self_attn.o_proj for layer, kind in zip(decoder.layers, kinds, strict=True) if kind == "full_attention"
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
