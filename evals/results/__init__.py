"""What a run leaves behind: one folder per setting, one line per sample, one summary."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(
    results: str | Path = "results", by: Literal["sample", "setting"] = "setting", pattern: str = ""
) -> "DataFrame":
    """The results tree `results` as a table: a row per setting that has a summary, or a row per finished sample.

    Both have `model`, `eval`, `task`, `protocol`, `method`, `budget`, `folder`, and `setting`: method and budget, and
    what else tells it from others of this frame, such as `window=16`. A setting's row has its summary's means (`low`
    and `high` are the 95 % interval), a sample's row its line, and `covered`: whether the summary counts it. Pair
    samples by `sample`, not by `id`: it tells the prompt and the model's weights as well.
    `pattern`: only settings whose path contains it. Raises `ValueError` for another `by`.
    """
    from evals.results.frames import sample_frame, setting_frame
    from evals.results.record import records

    if by not in ("sample", "setting"):
        raise ValueError(f"by={by}: choose sample or setting")
    chosen = records(Path(results), pattern)
    return sample_frame(chosen) if by == "sample" else setting_frame(chosen)
