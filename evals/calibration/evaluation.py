"""Calibrate a model from one of the sources, and store the file for methods to use, unless a better one exists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskv import calibration
from compresskv.calibration import Calibration
from compresskv.models import LoadedModel
from evals.calibration import held_out, longbench
from evals.calibration.config import Calibrate
from evals.files import write_json
from evals.job import Job
from evals.progress import Progress


def run(model: LoadedModel, config: Calibrate, jobs: Sequence[Job], progress: Progress) -> Path:
    """Calibrate for the observation settings of the jobs; returns the path of the file. Raises `UserError`."""
    measure = {"held_out": held_out.measure, "longbench": longbench.measure}[config.source]
    results = jobs[0].results
    record = measure(model, config, jobs[0], progress)
    return keep(record, config.folder, config.minimum_accepted, config.replace, results, progress)


def keep(
    record: Mapping[str, Any], folder: Path | None, minimum: int, replace: bool, results: Path, progress: Progress
) -> Path:
    """Write a calibration file with the content `record`, print its path, and return it.

    A calibration that is `poorer` than the present one is written to `results`, where it is used only if you name it.
    `folder`: write to this folder instead of the user's folder, and ignore `minimum`. `replace`: always overwrite.
    """
    name = f"{record['model']}.{record['source']}.json"
    present = calibration.find(record["model"], record["source"], folder)
    reason = None if replace else poorer(record, present, 0 if folder else minimum)
    path = (results / "calibration" if reason else folder or calibration.folders()[0]) / name
    write_json(path, record)
    how = f"set calibration={path}, or repeat the command with eval.replace=true"
    progress.say(f"calibration: {path}" + (f", not used by default, since {reason}: {how}" if reason else ""))
    return path


def poorer(record: Mapping[str, Any], present: Calibration | None, minimum: int) -> str | None:
    """Return why a new calibration must not replace the `present` one; None if it may."""
    prompts = sum(record["accepted"].values())
    if prompts < minimum:
        return f"it was made from {prompts} prompts, fewer than eval.minimum_accepted={minimum}"
    if present is None:
        return None
    if prompts < (before := sum(present.accepted.values())):
        return f"it was made from {prompts} prompts, and the present one from {before}"
    made = present.observation
    if record["observation"] != {"window": made.window, "kernel": made.kernel, "pooling": made.pooling}:
        return "the present one is for another observation"
    return None
