"""Where a new calibration goes: to the user's own, unless it rests on less than the one that would be used instead."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compresskv import calibration
from compresskv.calibration import Calibration
from evals.calibration.config import Calibrate
from evals.progress import Progress
from evals.results.store import write_json


def keep(record: Mapping[str, Any], config: Calibrate, results: Path, progress: Progress) -> Path:
    """Write a calibration file with the content `record`, say where it is, and return its path.

    Files that ship are never written to: the user's folder is searched before them. A calibration that is `poorer`
    than the one that is found now goes to `results`, and is only used where it is named.
    """
    name = f"{record['model']}.{record['source']}.json"
    folder = config.folder
    present = calibration.find(record["model"], record["source"], folder)
    reason = None if config.replace else poorer(record, present, 0 if folder else config.minimum_accepted)
    if reason is None:
        path = (folder or calibration.folders()[0]) / name
        write_json(path, record)
        progress.say(f"calibration: {path}")
    else:
        path = results / "calibration" / name
        write_json(path, record)
        progress.say(
            f"calibration: {path}, which is not taken by itself, since {reason}: name it, calibration={path}, or make "
            "it the one that is taken, eval.replace=true"
        )
    return path


def poorer(record: Mapping[str, Any], present: Calibration | None, minimum: int) -> str | None:
    """Why a new calibration must not stand in for the `present` one; None if it may."""
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
