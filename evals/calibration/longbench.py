"""Measure layer errors on LongBench, as the paper's authors do: on the test sets that are also evaluated.

The retrieval heads are taken from the held-out calibration. docs/audit.md reports the effect of this leakage.
"""

import json
from dataclasses import asdict
from typing import Any

import torch

from compresskv import calibration
from compresskv.calibration import layer_errors
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.inputs import read_once
from compresskv.layer_error import FLOOR
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from compresskv.semantic_heads import SemanticHeadScorer
from evals.calibration.config import Calibrate
from evals.calibration.held_out import digest, output_projections, rounded
from evals.job import Job
from evals.longbench.evaluation import LongBenchTask, make_tasks
from evals.progress import Progress
from evals.results.lines import owner
from evals.results.resumable import complete
from evals.results.schema import Line


def measure(model: LoadedModel, config: Calibrate, job: Job, progress: Progress) -> dict[str, Any]:
    """Measure the layer errors on all samples, resumably; returns the content of the file.

    Errors are summed over the generated tokens of a sample, and over the samples of a task. Raises `UserError` for
    unusable data, and if the model has no held-out calibration.
    """
    if job.eviction.when != "prompt":
        raise UserError(
            "eviction.when",
            "set it to prompt, or eval.source=held_out",
            value=job.eviction.when,
            why="eval.source=longbench measures eviction after the whole prompt, as the paper's authors do",
        )
    results = job.results
    heads_file = calibration.find_file(model.name, "held_out", config.folder)
    if heads_file is None:
        raise UserError(
            "calibration",
            "run `python run.py eval=calibrate` with this model first",
            why=f"{model.name} needs a held_out calibration, which contains its retrieval heads",
        )
    content = read_once(heads_file, "calibration")
    held_out = calibration.load(heads_file, content)
    counts = sorted({held_out.heads, *map(int, held_out.layer_scores_by_head_count)})
    used = Observation(**asdict(job.observation))
    scorers = [SemanticHeadScorer(used, held_out.top_heads("semantic", count)) for count in counts]
    tasks = make_tasks(model, config.test_sets, EvaluationProtocol())
    samples: dict[str, tuple[LongBenchTask, str]] = {}
    for task in tasks:
        samples |= {f"{task.name}-{id}": (task, id) for id in task.sample_ids}
    projections = output_projections(model)

    def line(named: tuple[LongBenchTask, str]) -> Line:
        task, id = named
        sample = task.sample(id)
        errors, _ = layer_errors.observe(model.model, sample.ids, sample.stopping, scorers, projections, FLOOR)
        return {"errors": rounded(errors)}

    identity = [model.fingerprint, model.dtype, repr(scorers), [task.identity for task in tasks]]
    folder = results / "runs" / model.name / "calibrate" / f"longbench-{digest(identity)}"
    of = owner(folder, results / "runs", model.fingerprint)
    lines = complete(folder, f"{model.name} layer errors on LongBench", samples, line, progress, of)
    by_task = [torch.tensor([lines[f"{task.name}-{id}"]["errors"] for id in task.sample_ids]).sum(0) for task in tasks]
    # A task with only one-token answers has no decode step and no error.
    shares = rounded([layer_errors.share([e[i] for e in by_task if e[i].sum() > 0]) for i in range(len(counts))], 8)
    record = json.loads(content) | {
        "source": "longbench",
        "made_by": f"python run.py eval=calibrate eval.source=longbench model={model.name}",
        "layer_scores": shares[counts.index(held_out.heads)],
        "layer_scores_by_head_count": dict(zip(map(str, counts), shares, strict=True)),
        "accepted": {task.name: len(task.sample_ids) for task in tasks},
        "longbench": {
            "rows": {task.name: list(task.sample_ids) for task in tasks},
            "settings": asdict(config.test_sets),
        },
    }
    record["longbench"]["settings"].pop("data")
    record.pop("haystack_fingerprint", None)
    progress.say(f"{len(samples)} samples of {len(tasks)} tasks")
    return record
