"""The files that a run writes: one folder per setting, with one line per sample and one summary."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(
    results: str | Path = "results", by: Literal["sample", "setting"] = "setting", pattern: str = ""
) -> "DataFrame":
    """Load the results tree `results` as a table with one row per setting that has a summary, or per finished sample.

    Both tables have the columns `model`, `eval`, `task`, `protocol`, `method`, `budget`, `folder` and `setting`: the
    method, the budget and any further value that distinguishes it within this frame, such as `window=16`. The row of a
    setting also has the means of its summary (`low` and `high` are the 95 % interval). The row of a sample also has the
    fields of its line, and `covered`: whether the summary counts it. Pair samples by `sample` instead of `id`, because
    `sample` also identifies the prompt and the model's weights.

    With `pattern`, only settings whose path contains it are loaded. Raises `ValueError` for another `by`.
    """
    from evals.results.frames import sample_frame, setting_frame
    from evals.results.record import records

    if by not in ("sample", "setting"):
        raise ValueError(f"by={by}: choose sample or setting")
    chosen = records(Path(results), pattern)
    return sample_frame(chosen) if by == "sample" else setting_frame(chosen)
