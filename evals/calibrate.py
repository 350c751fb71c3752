"""Calibrate a model: find its retrieval heads, then its layer errors, and write both to one JSON file.

Two passes over needle prompts, both resumable. The first scores all heads on every prompt that the model answers; the
second measures, on the accepted prompts, how much each layer's output suffers at the smallest budget.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import get_layer_types_and_kwargs

from compresskv import calibration
from compresskv.calibration import layer_errors, retrieval_heads
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.layer_error import FLOOR
from compresskv.models import LoadedModel
from compresskv.semantic_heads import SemanticHeadScorer
from evals.detection import Cell, last_texts, make_prompt, needles
from evals.haystack import Haystack
from evals.longbench.metrics import qa_f1
from evals.progress import Progress
from evals.results.store import Line, SampleStore, write_json
from evals.rouge import rouge1_recall

ACCEPTED = 0.5
"""Above this an answer is accepted: ROUGE-1 recall for copied spans (Wu et al. 2024), QA F1 for reasoning (HeadKV)."""

KINDS = {"copy": ("semantic", "semantic_count", "traditional"), "reason": ("retrieval_reasoning",)}
"""The head scores that each sort of needle gives."""


@dataclass(frozen=True)
class CalibrateConfig:
    """`conf/eval/calibrate.yaml`; `lengths` in tokens, `depths` evenly spaced from 0 to 100 per cent.

    `source`: held_out (needles), or longbench: layer errors on `data`, the first `limit` rows of each task, prompt and
    answer of at most `max_length` tokens.
    """

    name: str
    source: str
    data: str
    limit: int | None
    max_length: int | None
    haystack: str
    lengths: tuple[int, ...]
    depths: int
    max_steps: int
    head_counts: tuple[int, ...]
    minimum_accepted: int
    output: str | None


def run(
    model: LoadedModel, config: CalibrateConfig, observation: Observation, results: Path, progress: Progress
) -> Path:
    """Calibrate `model` for `observation`, keeping samples under `results`; returns the path written.

    Raises `UserError` if too few prompts are answered.
    """
    if not config.lengths or config.depths < 1 or config.max_steps < 2:
        raise UserError("eval.lengths needs a length, eval.depths 1 or more, eval.max_steps 2 or more")
    if (longest := max(config.lengths)) + config.max_steps > model.window:
        raise UserError(f"eval.lengths: {longest} tokens do not fit the {model.window}-token window of {model.name}")
    haystack = last_texts(config.haystack, longest)
    depths = np.linspace(0, 1, config.depths)
    cells = [Cell(n, length, float(d)) for n in needles() for length in config.lengths for d in depths]
    identity = {
        "model": [model.fingerprint, model.dtype, model.chat_template],
        "haystack": haystack.fingerprint,
        "needles": [asdict(needle) for needle in needles()],
        "max_steps": config.max_steps,
    }
    folder = results / "runs" / model.name / "calibrate"

    seen = _observe_heads(model, config, haystack, cells, folder / f"heads-{digest(identity)}", progress)
    accepted = {
        sort: [cell for cell in cells if cell.needle.sort == sort and seen[cell.id]["accepted"]] for sort in KINDS
    }
    if len(accepted["copy"]) < config.minimum_accepted:
        raise UserError(
            f"{model.name} answered {len(accepted['copy'])} calibration prompts, fewer than "
            f"eval.minimum_accepted={config.minimum_accepted}: use shorter eval.lengths or another model"
        )
    scores = {
        kind: torch.tensor([seen[cell.id][kind] for cell in accepted[sort]]).mean(0)
        for sort, kinds in KINDS.items()
        for kind in kinds
        if len(accepted[sort]) >= config.minimum_accepted
    }
    ranking = scores["semantic"].sort(dim=-1, descending=True, stable=True).indices
    counts = [count for count in config.head_counts if count <= ranking.shape[1]]
    scorers = [SemanticHeadScorer(observation, tuple(map(tuple, ranking[:, :n].tolist()))) for n in counts]
    errors_folder = folder / f"errors-{digest([identity, repr(scorers)])}"
    errors = _observe_errors(model, haystack, accepted["copy"], seen, scorers, errors_folder, progress)

    coverage = [
        float(np.mean([errors[cell.id]["coverage"][i] for cell in accepted["copy"]])) for i in range(len(counts))
    ]
    best = max(range(len(counts)), key=lambda i: (coverage[i], -counts[i]))
    record = {
        "model": model.name,
        "source": "held_out",
        "made_by": f"python run.py eval=calibrate model={model.name}",
        "observation": {key: getattr(observation, key) for key in ("window", "kernel", "pooling")},
        "heads": counts[best],
        "heads_criterion": "share of the answer span kept at the calibration budget, mean over prompts and layers",
        "coverage_by_head_count": dict(zip(map(str, counts), _rounded(coverage), strict=True)),
        "layer_scores": _layer_scores(errors, accepted["copy"], best),
        "layer_scores_by_head_count": {
            str(n): _layer_scores(errors, accepted["copy"], i) for i, n in enumerate(counts)
        },
        "head_scores": {kind: _rounded(layers) for kind, layers in scores.items()},
        "accepted": {n.name: sum(seen[cell.id]["accepted"] for cell in cells if cell.needle == n) for n in needles()},
        "prompts_per_needle": len(cells) // len(needles()),
        "settings": {
            "lengths": list(config.lengths),
            "depths": config.depths,
            "max_steps": config.max_steps,
            "past_tokens_kept": FLOOR,
            "error_epsilon": layer_errors.EPSILON,
        },
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "haystack_fingerprint": haystack.fingerprint,
    }
    target = Path(config.output or calibration.FOLDER) / f"{model.name}.held_out.json"
    write_json(target, record)
    _tell(progress, model, accepted, config, counts[best], target)
    return target


def _tell(
    progress: Progress, model: LoadedModel, accepted: dict, config: CalibrateConfig, heads: int, target: Path
) -> None:
    say = progress.console.print
    say(f"{len(accepted['copy'])} prompts accepted, {heads} retrieval heads a layer: {target}", soft_wrap=True)
    if len(accepted["reason"]) < config.minimum_accepted:
        say(
            f"only {len(accepted['reason'])} reasoning prompts accepted, so there are no retrieval_reasoning scores",
            soft_wrap=True,
        )


def _observe_heads(
    model: LoadedModel,
    config: CalibrateConfig,
    haystack: Haystack,
    cells: Sequence[Cell],
    folder: Path,
    progress: Progress,
) -> dict[str, Line]:
    """First pass: every cell's answer and head scores, by id."""
    store = SampleStore(folder)
    try:
        with progress.track(f"{model.name} retrieval heads", cells) as steps:
            for cell in steps:
                if cell.id not in store.lines:
                    store.append(
                        {"id": cell.id, **_head_line(model, config, *make_prompt(model, cell, haystack), cell)}
                    )
    finally:
        store.close()
    return store.lines


def _head_line(model: LoadedModel, config: CalibrateConfig, ids: Tensor, span: range, cell: Cell) -> Line:
    def stop(tokens: Sequence[int]) -> bool:
        """At the end of the answer: an EOS, or a newline after text."""
        text = model.tokenizer.decode(tokens)
        return tokens[-1] in model.stop_ids or ("\n" in text and bool(text.split("\n")[0].strip()))

    copies = cell.needle.sort == "copy"
    # HeadKV looks at as many steps as the answer has tokens.
    steps = config.max_steps if copies else min(config.max_steps, len(span))
    seen = retrieval_heads.observe(model.model, ids, span, model.layers, steps, stop)
    answer = model.tokenizer.decode(seen.tokens, skip_special_tokens=True)
    quality = rouge1_recall(cell.needle.answer, answer) if copies else qa_f1(answer, cell.needle.answer)
    return {
        "answer": answer,
        "quality": round(float(quality), 4),
        "accepted": bool(quality > ACCEPTED),
        "tokens": seen.tokens,
        "prompt_tokens": ids.numel(),
        **{kind: _rounded(getattr(seen, kind)) for kind in KINDS[cell.needle.sort]},
    }


def _observe_errors(
    model: LoadedModel,
    haystack: Haystack,
    cells: Sequence[Cell],
    seen: dict[str, Line],
    scorers: Sequence[SemanticHeadScorer],
    folder: Path,
    progress: Progress,
) -> dict[str, Line]:
    """Second pass: every accepted cell's layer errors, [scorers][layers], and share of the answer kept, by id."""
    projections = output_projections(model)
    store = SampleStore(folder)
    try:
        with progress.track(f"{model.name} layer errors", cells) as steps:
            for cell in steps:
                if cell.id in store.lines:
                    continue
                ids, span = make_prompt(model, cell, haystack)
                tokens = seen[cell.id]["tokens"]
                errors, kept = layer_errors.observe(model.model, ids, tokens, scorers, projections, FLOOR)
                coverage = [layer_errors.coverage(layers, span) for layers in kept]
                store.append({"id": cell.id, "errors": _rounded(errors), "coverage": _rounded(coverage)})
    finally:
        store.close()
    return store.lines


def _layer_scores(errors: dict[str, Line], cells: Sequence[Cell], scorer: int) -> list[float]:
    """Each layer's share of the error, the needles acting as the datasets."""
    by_needle: dict[str, Tensor] = {}
    for cell in cells:
        error = torch.tensor(errors[cell.id]["errors"][scorer])
        by_needle[cell.needle.name] = by_needle.get(cell.needle.name, 0) + error
    return _rounded(layer_errors.share(list(by_needle.values())), 8)


def output_projections(model: LoadedModel) -> list[torch.nn.Module]:
    """W_O of every layer that evicts."""
    decoder = model.model.get_decoder()
    kinds, _ = get_layer_types_and_kwargs(model.model.config.get_text_config(decoder=True))
    evicting = [layer for layer, kind in zip(decoder.layers, kinds, strict=True) if kind == "full_attention"]
    return [layer.self_attn.o_proj for layer in evicting]


def _rounded(values: Any, digits: int = 6) -> Any:
    if isinstance(values, Tensor):
        values = values.tolist()
    return [_rounded(v, digits) for v in values] if isinstance(values, list) else round(values, digits)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
