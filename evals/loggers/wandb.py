"""Weights & Biases."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compresskv.checking import Name, PathText
from compresskv.errors import UserError
from evals.loggers import Logger
from evals.results.names import names
from evals.results.record import Record

COLUMNS = ("id", "prediction", "score")
"""The fields of a sample's line that W&B gets."""


@dataclass(frozen=True)
class WandbLogger(Logger):
    """One W&B run per setting, with its summary, samples and configuration; the figures go with the first."""

    project: Name
    group: Name | None
    mode: Literal["online", "offline"]
    directory: PathText

    def check(self) -> None:
        if self.mode == "offline" or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
            return
        import wandb

        if not wandb.api.api_key:
            raise UserError("logger=wandb: nobody is logged in: run `wandb login`, or set logger.mode=offline")

    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        import wandb

        Path(self.directory).mkdir(parents=True, exist_ok=True)
        for number, (name, record) in enumerate(zip(names(records), records, strict=True)):
            summary = record.summary or {}
            run = wandb.init(
                project=self.project,
                group=self.group,
                mode=self.mode,
                dir=self.directory,
                name=f"{record.model} {record.task} {name} {record.protocol}",
                job_type=record.eval,
                config=summary["config"],
            )
            run.log({field: summary[field] for field in ("score", "n", "realised_budget", "cache_bytes")})
            rows = [[line[column] for column in COLUMNS] for line in record.covered]
            run.log({"samples": wandb.Table(list(COLUMNS), rows)})
            if number == 0:
                run.log({path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"})
            run.finish()
