"""Weights & Biases as a mirror of the results: the local files stay the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.runner import Finished


def mirror(finished: Sequence[Finished], figures: Sequence[Path], options: Mapping[str, Any]) -> None:
    """One W&B run a setting, with its summary, samples and configuration; the figures go with the first.

    `options` are `project`, `group`, `mode` ("online", "offline") and `directory`, of `conf/logger/wandb.yaml`.
    """
    import wandb

    Path(options["directory"]).mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(finished):
        summary = item.summary
        run = wandb.init(
            project=options["project"],
            group=options["group"],
            mode=options["mode"],
            dir=options["directory"],
            name=f"{summary['model']} {summary['task']} {item.job.setting} {summary['protocol']}",
            job_type=summary["eval"],
            config=summary["config"],
        )
        run.log({name: summary[name] for name in ("score", "n", "realised_budget", "cache_bytes")})
        columns = ["id", "prediction", "score"]
        run.log({"samples": wandb.Table(columns, [[line[column] for column in columns] for line in item.lines])})
        if number == 0:
            run.log({path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"})
        run.finish()
