"""Layer errors on LongBench, as the paper's authors calibrate: on the very test sets that are evaluated.

The retrieval heads are those found on held-out needles. docs/audit.md says what the leakage is worth.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from compresskv import calibration
from compresskv.calibration import layer_errors
from compresskv.errors import UserError
from compresskv.eviction import Observation
from compresskv.layer_error import FLOOR
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from compresskv.semantic_heads import SemanticHeadScorer
from evals.calibrate import CalibrateConfig, digest, output_projections
from evals.longbench.data import open_source
from evals.longbench.task import LongBenchConfig, LongBenchTask
from evals.longbench.tasks import select_tasks
from evals.progress import Progress
from evals.results.store import SampleStore, write_json


def run(
    model: LoadedModel, config: CalibrateConfig, observation: Observation, results: Path, progress: Progress
) -> Path:
    """Measure the layer errors on all samples, resumably; returns the path written.

    Each sample's errors are summed over its generated tokens, each task's over its samples. Raises `UserError` for
    unusable data, and where the model's heads are not known yet.
    """
    target = Path(config.output or calibration.FOLDER)
    heads_file = target / f"{model.name}.held_out.json"
    if not heads_file.exists():
        raise UserError(
            f"there is no held_out calibration of {model.name}, which has the retrieval heads: "
            f"run `python run.py eval=calibrate model={model.name}` first"
        )
    held_out = calibration.load(heads_file)
    scorer = SemanticHeadScorer(observation, held_out.top_heads("semantic", held_out.heads))
    source = LongBenchConfig("longbench", config.data, "english", config.limit, config.max_length, None, None)
    folder = open_source(source.data)
    tasks = [LongBenchTask(source, task, folder, model, EvaluationProtocol()) for task in select_tasks(source.tasks)]
    wanted = [(task, id) for task in tasks for id in task.sample_ids]
    identity = [model.fingerprint, model.dtype, repr(scorer), [task.identity for task in tasks]]
    store = SampleStore(results / "runs" / model.name / "calibrate" / f"longbench-{digest(identity)}")
    projections = output_projections(model)
    try:
        with progress.track(f"{model.name} layer errors on LongBench", wanted) as steps:
            for task, id in steps:
                name = f"{task.name}-{id}"
                if name not in store.lines:
                    sample = task.sample(id)
                    errors, _ = layer_errors.observe(
                        model.model, sample.ids, sample.stopping, [scorer], projections, FLOOR
                    )
                    store.append({"id": name, "errors": [round(x, 6) for x in errors[0].tolist()]})
        by_task = [
            torch.tensor([store.lines[f"{task.name}-{id}"]["errors"] for id in task.sample_ids]).sum(0)
            for task in tasks
        ]
    finally:
        store.close()
    record = json.loads(heads_file.read_text()) | {
        "source": "longbench",
        "made_by": f"python run.py eval=calibrate eval.source=longbench model={model.name}",
        # A task whose every answer is one token has no decoding step, and so no error.
        "layer_scores": [round(x, 8) for x in layer_errors.share([e for e in by_task if e.sum() > 0]).tolist()],
        "longbench": {"rows": {task.name: list(task.sample_ids) for task in tasks}, "settings": asdict(source)},
    }
    record["longbench"]["settings"].pop("data")
    for name in ("layer_scores_by_head_count", "haystack_fingerprint"):
        record.pop(name, None)
    path = target / f"{model.name}.longbench.json"
    write_json(path, record)
    progress.console.print(f"{len(wanted)} samples of {len(tasks)} tasks: {path}", soft_wrap=True)
    return path
