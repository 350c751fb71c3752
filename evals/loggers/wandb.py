"""Weights & Biases."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compresskv.checking import Name, PathText
from compresskv.errors import UserError
from evals.loggers import Logger
from evals.results.measurement import Measurement
from evals.results.names import names
from evals.results.record import NAMED, Record

COLUMNS = ("id", "length", "depth", "prompt_tokens", "answers", "prediction", "kept", "realised_budget")
"""The fields of a sample's line that go into the table of samples where it has them; all its scores follow."""

MEASURED = ("score", "n", "realised_budget", "cache_bytes", "total_cache_bytes", "uncompressed", "truncated", "failed")
"""The numbers of a summary that are logged as they are."""

ABOUT = ("dtype", "backend", "model_fingerprint", "method_in_full")
"""What a summary says of its setting besides its name."""


@dataclass(frozen=True)
class WandbLogger(Logger):
    """One W&B run per setting, with its summary, samples and configuration; the figures go with the first.

    A setting's run has the same id whenever it is sent, so that a command that goes on continues its run.
    """

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
        images = {path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"}
        for name, record in zip(names(records), records, strict=True):
            if record.summary is None:
                continue
            with wandb.init(
                project=self.project,
                group=self.group or f"{record.model} {record.eval}",
                mode=self.mode,
                dir=self.directory,
                id=run_id(record),
                resume="allow",
                name=f"{record.model} {record.task} {name} {record.protocol}",
                job_type=record.eval,
                tags=tags(record),
                config=configuration(record),
            ) as run:
                columns, rows = samples(record)
                run.log({**measured(record.summary), "samples": wandb.Table(columns=columns, data=rows), **images})
            images = {}

    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """One run each: its tables, its figures, and the file itself as an artifact."""
        import wandb

        Path(self.directory).mkdir(parents=True, exist_ok=True)
        for measurement in measurements:
            tables: dict[str, Any] = {}
            for name, (columns, rows) in measurement.tables.items():
                data = [[str(value) if isinstance(value, list) else value for value in row] for row in rows]
                tables[name] = wandb.Table(columns=list(columns), data=data)
            for figure in (measurement.path.with_suffix(".png"), measurement.path.with_name("pools.png")):
                if figure.is_file():
                    tables[figure.stem] = wandb.Image(str(figure))
            with wandb.init(
                project=self.project,
                group=self.group or f"{measurement.model} {measurement.eval}",
                mode=self.mode,
                dir=self.directory,
                id=f"{measurement.model}-{measurement.eval}-{measurement.digest}"[-128:],
                resume="allow",
                name=f"{measurement.model} {measurement.eval}",
                job_type=measurement.eval,
                tags=[tag[:64] for tag in (measurement.model, measurement.eval)],
                config=measurement.about,
            ) as run:
                run.log(tables)
                artifact = wandb.Artifact(f"{measurement.eval}-{measurement.digest}", type=measurement.eval)
                artifact.add_file(str(measurement.path))
                run.log_artifact(artifact)


def run_id(record: Record) -> str:
    """The same for a setting whenever it is sent, another for any other."""
    return "-".join(str(part) for part in (*_place(record).values(), record.digest) if part)[-128:].replace("/", "-")


def tags(record: Record) -> list[str]:
    """Model, evaluation, task, protocol and method: what people filter by, of at most 64 characters each."""
    named = [str(getattr(record, field)) for field in NAMED if field != "budget"]
    return [tag[:64] for tag in dict.fromkeys(named) if tag]


def configuration(record: Record) -> dict[str, Any]:
    """The resolved configuration, what the setting is, and where it ran; each a column of W&B's tables."""
    summary = record.summary or {}
    about = {field: summary[field] for field in ABOUT if field in summary}
    # `model`, `eval`, `protocol` and `method` are nodes of the configuration, so the names have a node of their own.
    return {**record.config, "setting": _place(record), **about, "environment": summary.get("environment", {})}


def measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a summary, one level deep: further scores and fidelity by their names, intervals as two bounds."""
    numbers = {field: summary[field] for field in MEASURED if field in summary}
    numbers |= summary.get("scores", {})
    numbers |= _bounds("score", summary.get("interval"))
    for field, mean in summary.get("fidelity", {}).items():
        numbers |= {field: mean["mean"], **_bounds(field, mean["interval"])}
    return numbers


def samples(record: Record) -> tuple[list[str | int], list[list[Any]]]:
    """Columns and rows of the table of samples. Lists are written as text: a column of W&B has one type."""
    lines = record.covered
    known = set().union(*lines)
    columns: list[str | int] = [column for column in COLUMNS if column in known]
    columns += sorted(field for field in known if field == "score" or field.startswith("score_"))
    rows = []
    for line in lines:
        values = [line.get(str(column)) for column in columns]
        rows.append([str(value) if isinstance(value, list) else value for value in values])
    return columns, rows


def _bounds(field: str, interval: Sequence[float] | None) -> dict[str, float]:
    return {} if interval is None else {f"{field}_low": interval[0], f"{field}_high": interval[1]}


def _place(record: Record) -> dict[str, Any]:
    return {field: getattr(record, field) for field in NAMED}
