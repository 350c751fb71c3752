"""Calibrate on held-out needles: find the model's retrieval heads, then its layer errors, stored in one JSON file.

Calibration has three resumable passes. The first scores all heads on every needle prompt. The second measures the error
of each layer's output at the smallest budget, on the accepted prompts. The third measures the KL to the full cache with
each number of heads, on ordinary text.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from compresskv.calibration import layer_errors, retrieval_heads
from compresskv.engine.model_shape import evicting_layers
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.layer_error import FLOOR
from compresskv.models import LoadedModel
from compresskv.observation import ObservationConfig
from compresskv.selecting_heads import share_of_the_paper
from compresskv.semantic_heads import SemanticHeadScorer
from evals.calibration import head_count
from evals.calibration.config import Calibrate
from evals.calibration.detection import Trial, answered, last_texts, make_prompt, needles
from evals.haystack import Haystack, essays
from evals.job import Job
from evals.metrics.longbench import qa_f1
from evals.metrics.rouge1 import rouge1_recall
from evals.progress import Progress
from evals.results.lines import owner
from evals.results.resumable import complete
from evals.results.schema import Line

T = TypeVar("T")

ACCEPTED = 0.5
"""Answers that score higher are accepted: ROUGE-1 recall for copying (Wu et al. 2024), QA F1 for reasoning (HeadKV)."""

KINDS = {"copy": ("semantic", "semantic_count", "traditional"), "reason": ("retrieval_reasoning",)}
"""Kinds of head scores that each sort of needle yields."""


def measure(model: LoadedModel, config: Calibrate, job: Job, progress: Progress) -> dict[str, Any]:
    """Calibrate `model` for the observation of `job`, and return the content of the file.

    Raises `UserError` if the prompts do not fit the model, or if too few are answered.
    """
    lengths = config.grid(model.window)
    longest = max(lengths)
    if min(lengths) < 1 or longest + config.max_steps > model.window:
        raise UserError(
            "eval.lengths",
            "choose shorter lengths",
            value=longest,
            why=f"it does not fit the {model.window}-token window of {model.name} with {config.max_steps} new tokens",
        )
    before_question = job.eviction.before_question
    return HeldOutCalibration(model, config, job.observation, job.results, progress, before_question).run()


@dataclass(frozen=True)
class HeldOutCalibration:
    """One calibration. The sample lines of all passes are stored below `results`.

    `before_question`: whether layer errors are measured for eviction before the question.
    """

    model: LoadedModel
    config: Calibrate
    observation: ObservationConfig
    results: Path
    progress: Progress
    before_question: bool = False

    def complete(
        self, stem: str, identity: Any, title: str, items: Mapping[str, T], line: Callable[[T], Line]
    ) -> Mapping[str, Line]:
        """Run the rest of a pass, and return its lines by the ids of `items`."""
        runs = self.results / "runs"
        folder = runs / self.model.name / "calibrate" / f"{stem}-{digest(identity)}"
        of = owner(folder, runs, self.model.fingerprint)
        return complete(folder, f"{self.model.name} {title}", items, line, self.progress, of)

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.config.grid(self.model.window)

    def run(self) -> dict[str, Any]:
        """Run all passes; returns the content of the calibration file. Raises `UserError` for too few answers."""
        heads = self.observe_heads()
        accepted = self.accepted(heads)
        if not self.enough("copy", accepted):
            raise UserError(
                "eval.minimum_accepted",
                "use shorter eval.lengths or another model",
                value=self.config.minimum_accepted,
                why=f"{self.model.name} answered {len(accepted['copy'])} of {self.asked('copy')} calibration prompts, "
                "fewer than this number and fewer than half",
            )
        scores = self.head_scores(heads, accepted)
        ranking = scores["semantic"].sort(dim=-1, descending=True, stable=True).indices
        counts = head_count.candidates(self.config.head_counts, ranking.shape[1])
        observation = Observation(**asdict(self.observation))
        scorers = [SemanticHeadScorer(observation, tuple(map(tuple, ranking[:, :n].tolist()))) for n in counts]
        errors = self.observe_errors(heads, accepted["copy"], scorers)
        record = self.record(accepted, scores, counts, errors, self.observe_text(scorers))
        self.report(accepted, record, ranking.shape[1])
        return record

    def asked(self, sort: str) -> int:
        """Return the number of prompts with this sort of needle."""
        return sum(cell.needle.sort == sort for cell in self.cells)

    def enough(self, sort: str, accepted: Mapping[str, Sequence[Trial]]) -> bool:
        """Return whether `minimum_accepted` prompts were accepted, or half of all prompts if that is fewer."""
        return len(accepted[sort]) >= min(self.config.minimum_accepted, math.ceil(self.asked(sort) / 2))

    @cached_property
    def texts(self) -> list[str]:
        return essays(self.config.haystack)

    @cached_property
    def haystack(self) -> Haystack:
        return last_texts(self.texts, max(self.lengths))

    @cached_property
    def cells(self) -> list[Trial]:
        """All distinct prompts. Raises `UserError` for depths that give equal ids."""
        cells: dict[str, Trial] = {}
        for needle, length, depth in product(needles(), self.lengths, self.config.depth_list):
            cell = Trial(needle, length, depth)
            if cells.setdefault(cell.id, cell) != cell:
                raise UserError(
                    "eval.depths",
                    "choose other depths, or at most 101 depths",
                    value=self.config.depths,
                    why="two depths are equal when rounded to whole per cent",
                )
        return list(cells.values())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change an answer."""
        return {
            "model": [self.model.fingerprint, self.model.dtype, self.model.chat_template],
            "haystack": self.haystack.fingerprint,
            "needles": [asdict(needle) for needle in needles()],
            "max_steps": self.config.max_steps,
        }

    def observe_heads(self) -> Mapping[str, Line]:
        """Run the first pass; returns the answer and head scores of every cell, by id."""
        cells = {cell.id: cell for cell in self.cells}
        return self.complete("heads", self.identity, "retrieval heads", cells, self._head_line)

    def _head_line(self, cell: Trial) -> Line:
        ids, span, _ = make_prompt(self.model, cell, self.haystack)
        copies = cell.needle.sort == "copy"
        # HeadKV uses one step per token of the answer.
        steps = self.config.max_steps if copies else min(self.config.max_steps, len(span))
        stop = partial(answered, self.model)
        observed = retrieval_heads.observe(self.model.model, ids, span, self.model.layers, steps, stop)
        answer = self.model.tokenizer.decode(observed.tokens, skip_special_tokens=True)
        quality = rouge1_recall(cell.needle.answer, answer) if copies else qa_f1(answer, cell.needle.answer)
        return {
            "answer": answer,
            "quality": round(float(quality), 4),
            "accepted": bool(quality > ACCEPTED),
            "tokens": observed.tokens,
            "prompt_tokens": ids.numel(),
            **{kind: rounded(getattr(observed, kind)) for kind in KINDS[cell.needle.sort]},
        }

    def accepted(self, heads: Mapping[str, Line]) -> dict[str, list[Trial]]:
        """Return the cells with an accepted answer, by sort of needle."""
        answered = [cell for cell in self.cells if heads[cell.id]["accepted"]]
        return {sort: [cell for cell in answered if cell.needle.sort == sort] for sort in KINDS}

    def head_scores(self, heads: Mapping[str, Line], accepted: Mapping[str, Sequence[Trial]]) -> dict[str, Tensor]:
        """Average scores [layers, q_heads] over accepted prompts, by kind. Leaves out kinds with too few prompts."""
        return {
            kind: torch.tensor([heads[cell.id][kind] for cell in accepted[sort]]).mean(0)
            for sort, kinds in KINDS.items()
            if self.enough(sort, accepted)
            for kind in kinds
        }

    def observe_errors(
        self, heads: Mapping[str, Line], cells: Sequence[Trial], scorers: Sequence[SemanticHeadScorer]
    ) -> Mapping[str, Line]:
        """Run the second pass; returns layer errors [scorers][layers] and the share of the answer kept, by cell id."""
        projections = output_projections(self.model)

        def line(cell: Trial) -> Line:
            ids, span, context = make_prompt(self.model, cell, self.haystack)
            tokens = heads[cell.id]["tokens"]
            compressed = context if self.before_question else None
            errors, kept = layer_errors.observe(self.model.model, ids, tokens, scorers, projections, FLOOR, compressed)
            coverage = [layer_errors.coverage(layers, span) for layers in kept]
            return {"errors": rounded(errors), "coverage": rounded(coverage)}

        identity = [self.identity, repr(scorers), *(["context"] if self.before_question else [])]
        return self.complete("errors", identity, "layer errors", {cell.id: cell for cell in cells}, line)

    def observe_text(self, scorers: Sequence[SemanticHeadScorer]) -> list[list[float]]:
        """Run the third pass; returns the KL to the full cache on ordinary text, [texts][scorers]."""
        haystack = last_texts(self.texts, 10**6)
        longest = self.model.window - head_count.CONTINUATION
        texts: dict[str, Tensor] = {}
        for length in sorted({min(self.lengths), max(self.lengths)}):
            texts |= head_count.stretches(self.model, haystack, min(length, longest), self.config.texts)
        identity = [self.identity["model"], {id: text.tolist() for id, text in texts.items()}, repr(scorers)]

        def line(text: Tensor) -> Line:
            return {"kl": rounded(head_count.observe(self.model, text, scorers))}

        lines = self.complete("text", identity, "ordinary text", texts, line)
        return [lines[id]["kl"] for id in texts]

    def record(
        self,
        accepted: Mapping[str, Sequence[Trial]],
        scores: Mapping[str, Tensor],
        counts: Sequence[int],
        errors: Mapping[str, Line],
        text_kl: Sequence[Sequence[float]],
    ) -> dict[str, Any]:
        """Build the content of the calibration file. `counts`: numbers of heads that `errors` and `text_kl` compare."""
        cells = accepted["copy"]
        coverage = [float(np.mean([errors[cell.id]["coverage"][i] for cell in cells])) for i in range(len(counts))]
        layer_scores = [_layer_scores(errors, cells, i) for i in range(len(counts))]
        distances = rounded(np.mean(text_kl, 0).tolist()) if text_kl else [None] * len(counts)
        best = head_count.choose(counts, coverage, text_kl)
        answered = [cell.needle.name for sort in accepted.values() for cell in sort]
        return {
            "model": self.model.name,
            "source": "held_out_context" if self.before_question else "held_out",
            "made_by": f"python run.py eval=calibrate model={self.model.name}"
            + (" eviction.when=context" if self.before_question else ""),
            "observation": asdict(self.observation),
            "heads": counts[best],
            "heads_criterion": head_count.CRITERION,
            "coverage_by_head_count": dict(zip(map(str, counts), rounded(coverage), strict=True)),
            "text_kl_by_head_count": dict(zip(map(str, counts), distances, strict=True)),
            "texts": len(text_kl),
            "layer_scores": layer_scores[best],
            "layer_scores_by_head_count": dict(zip(map(str, counts), layer_scores, strict=True)),
            "head_scores": {kind: rounded(layers) for kind, layers in scores.items()},
            "accepted": {needle.name: answered.count(needle.name) for needle in needles()},
            "no_scores": self.no_scores(accepted),
            "prompts_per_needle": len(self.cells) // len(needles()),
            "settings": {
                "lengths": list(self.lengths),
                "depths": self.config.depths if isinstance(self.config.depths, int) else list(self.config.depths),
                "max_steps": self.config.max_steps,
                "past_tokens_kept": FLOOR,
                "error_epsilon": layer_errors.EPSILON,
            },
            "weights": self.model.weights,
            "model_fingerprint": self.model.fingerprint,
            "dtype": self.model.dtype,
            "haystack_fingerprint": self.haystack.fingerprint,
        }

    def no_scores(self, accepted: Mapping[str, Sequence[Trial]]) -> dict[str, str]:
        """Return, for each kind of scores without enough answered prompts, why it is missing."""
        return {
            kind: f"this model answered {len(accepted[sort])} of the {self.asked(sort)} prompts that these scores need"
            for sort, kinds in KINDS.items()
            if not self.enough(sort, accepted)
            for kind in kinds
        }

    def report(self, accepted: Mapping[str, Sequence[Trial]], record: Mapping[str, Any], q_heads: int) -> None:
        """Print the measurements for each number of heads, and the missing kinds of scores."""
        self.progress.say(f"{len(accepted['copy'])} prompts accepted")
        names = {"the paper's share": share_of_the_paper(q_heads), "heads=calibrated": record["heads"]}
        for count, kept in record["coverage_by_head_count"].items():
            distance = record["text_kl_by_head_count"][count]
            on_text = "" if distance is None else f", KL {distance:.3f} on ordinary text"
            called = ", ".join(name for name, heads in names.items() if heads == int(count))
            what = f"{count} heads per layer ({called})" if called else f"{count} heads per layer"
            self.progress.say(f"{what}: {100 * kept:.1f} % of the answers kept{on_text}")
        if not self.enough("reason", accepted):
            self.progress.say(
                f"only {len(accepted['reason'])} reasoning prompts accepted, so there are no retrieval_reasoning scores"
            )


def _layer_scores(errors: Mapping[str, Line], cells: Sequence[Trial], scorer: int) -> list[float]:
    """Return each layer's share of the error; every needle counts as one dataset."""
    by_needle: dict[str, Tensor] = {}
    for cell in cells:
        error = torch.tensor(errors[cell.id]["errors"][scorer])
        by_needle[cell.needle.name] = by_needle.get(cell.needle.name, 0) + error
    return rounded(layer_errors.share(list(by_needle.values())), 8)


def output_projections(model: LoadedModel) -> list[torch.nn.Module]:
    """Return the output projection W_O of every layer that evicts."""
    decoder = model.model.get_decoder()
    return [decoder.layers[place].self_attn.o_proj for place in evicting_layers(model.model.config)]


def rounded(values: Any, digits: int = 6) -> Any:
    """Convert a number, nested lists or a tensor to rounded plain data."""
    if isinstance(values, Tensor):
        values = values.tolist()
    return [rounded(v, digits) for v in values] if isinstance(values, list) else round(values, digits)


def digest(value: Any) -> str:
    """Return the first eight hexadecimal digits of the sha256 of `value` as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
