"""Log results to Weights & Biases."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compresskv.budget import written
from compresskv.checking import Name as PlainName
from compresskv.checking import PathText
from compresskv.errors import UserError
from evals.console import visible
from evals.job import Logger, Report
from evals.results.means import groups_of
from evals.results.measurement import Measurement
from evals.results.names import names
from evals.results.record import FILES, Record
from evals.results.schema import FIDELITY, NAMED
from evals.results.shows import hook, own_fields, sound
from evals.tables import text
from evals.tables.methods import Name

if TYPE_CHECKING:
    import wandb

    from evals.job import Job

COLUMNS = (
    *("prompt_tokens", "prompt_tail", "prediction", "kept", "realised_budget"),
    *(*FIDELITY, "kl_per_token", "prompt_sha256"),
)
"""Sample fields in the table of samples, after the fields of the evaluation and before the scores."""

MEASURED = ("score", "n", "realised_budget", "cache_bytes", "total_cache_bytes", "uncompressed", "truncated", "failed")
"""Summary numbers that are logged unchanged."""

ABOUT = ("dtype", "backend", "model_fingerprint", "method_in_full", "prompt")
"""Summary fields that describe the setting."""


@dataclass(frozen=True)
class WandbLogger(Logger):
    """Logs one W&B run per setting, with summary, samples, configuration and files, and one overview run per command.

    The overview has a table of all settings and the figures. Ids are derived from the settings, so a resumed command
    continues its runs. While a command runs, a separate run shows its progress.
    """

    project: PlainName
    entity: PlainName | None
    group: PlainName | None
    tags: tuple[PlainName, ...]
    notes: PlainName | None
    mode: Literal["online", "offline"]
    directory: PathText

    def check(self) -> None:
        if refused := re.search(r"[/\\#?%:]", self.project):
            raise UserError(
                "logger.project",
                "choose a name without this character",
                value=self.project,
                why=f"W&B does not accept {refused[0]} in a project's name",
            )
        if self.mode == "offline" or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
            return
        import wandb

        if not wandb.api.api_key:
            raise UserError(
                "logger", "run `wandb login`, or set logger.mode=offline", value="wandb", why="you are not logged in"
            )

    @contextmanager
    def watched(self, jobs: "Sequence[Job]") -> Iterator[Report]:
        import wandb

        settings = list(dict.fromkeys(job.label for job in jobs))  # the full cache is the same setting at all budgets
        try:
            run = self._opened(
                jobs[0].model.name,
                jobs[0].eval.name,
                id=progress_id(jobs),
                name=f"progress of {len(settings)} settings",
                job_type="progress",
                config={"settings": settings},
            )
        except wandb.Error as error:
            print(f"logger=wandb: progress is not sent: {error}", file=sys.stderr)
            yield lambda title, done, total: None
            return
        with run:
            yield lambda title, done, total: run.log({"task": title, "prompts": done, "of": total})

    def _opened(self, model: str, evaluation: str, tags: Sequence[str] = (), **about: Any) -> "wandb.Run":
        """Open a new run, or the existing one with this id. W&B prints nothing."""
        import wandb

        Path(self.directory).mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or f"{model} {evaluation}",
            mode=self.mode,
            dir=self.directory,
            notes=self.notes,
            tags=[tag[:64] for tag in dict.fromkeys([model, evaluation, *tags, *self.tags]) if tag],
            resume="allow",
            settings=wandb.Settings(silent=True),
            **about,
        )

    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        import wandb

        finished = [record for record in records if record.summary is not None]
        named = dict(zip(finished, names(finished), strict=True))
        for record, name in named.items():
            with self._opened(
                record.model,
                record.eval,
                [record.task, record.protocol, record.method],
                id=run_id(record),
                name=f"{record.model} {record.task} {name} {record.protocol}",
                job_type=record.eval,
                config=configuration(record),
            ) as run:
                run.log({**measured(record.summary or {}), "samples": _table(*samples(record))})
                files = [path for path in (record.path / name for name in FILES) if path.is_file()]
                run.log_artifact(_artifact(record.name, "results", files))
        if not finished:
            return
        tables = {name: _table(columns, rows) for name, (columns, rows) in means(finished)}
        images = {path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"}
        with self._opened(
            finished[0].model,
            finished[0].eval,
            [*(record.model for record in finished), *(record.eval for record in finished)],
            id=f"overview-{_hash(' '.join(sorted(map(run_id, finished))))}",
            name=f"overview of {len(named)} settings",
            job_type="overview",
            config={"settings": [str(name) for name in named.values()]},
        ) as run:
            run.log({"settings": _table(*overview(named)), **tables, **images})
            if run.url:
                print(f"W&B: {run.url}", file=sys.stderr)

    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Log one run per measurement: its tables, its figures, and the file itself as an artifact."""
        import wandb

        for measurement in measurements:
            logged: dict[str, Any] = {name: _table(*table) for name, table in measurement.tables.items()}
            for figure in sorted(measurement.path.parent.glob("*.png")):
                logged[figure.stem] = wandb.Image(str(figure))
            with self._opened(
                measurement.model,
                measurement.eval,
                id=safe_id(f"{measurement.model}-{measurement.eval}-{measurement.digest}"),
                name=f"{measurement.model} {measurement.eval}",
                job_type=measurement.eval,
                config=measurement.about,
            ) as run:
                run.log(logged)
                name = f"{measurement.eval}-{measurement.digest}"
                run.log_artifact(_artifact(name, measurement.eval, [measurement.path]))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=list(columns), data=[list(map(_cell, row)) for row in rows])


def _cell(value: Any) -> Any:
    """Convert a list to text, since a W&B column has one type."""
    return str(value) if isinstance(value, list) else value


def _artifact(name: str, kind: str, files: Sequence[Path]) -> "wandb.Artifact":
    import wandb

    artifact = wandb.Artifact(artifact_name(name), type=kind)
    for path in files:
        artifact.add_file(str(path))
    return artifact


def progress_id(jobs: "Sequence[Job]") -> str:
    """Return an id that stays the same if the command is repeated, even in another folder."""
    settings = [{key: value for key, value in job.config.items() if key not in ("paths", "logger")} for job in jobs]
    return f"progress-{_hash(json.dumps(settings, sort_keys=True, default=str))}"


def _hash(name: str) -> str:
    return hashlib.sha256(visible(name).encode()).hexdigest()[:16]


def run_id(record: Record) -> str:
    """Return an id that depends only on the setting."""
    # Derived from the folder, since displayed names may change.
    budget = None if record.budget is None else str(record.budget)
    return safe_id("-".join(filter(None, (*record.path.parts[-6:-1], budget, record.digest))))


def safe_id(name: str) -> str:
    """Return the end of `name` as an id that W&B accepts.

    If the id differs from the end of `name`, it gets a hash of the whole name.
    """
    end = name[-128:]
    safe = re.sub("[:;,#?/']", "-", visible(end)).strip()
    return end if safe == end else f"{safe[-119:].lstrip()}-{hashlib.sha256(visible(name).encode()).hexdigest()[:8]}"


def artifact_name(name: str) -> str:
    """Return `name` as an artifact name that W&B accepts: only letters, digits, `-`, `_` and `.`."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[-128:]


def configuration(record: Record) -> dict[str, Any]:
    """Return the resolved configuration, the names of the setting, and its environment.

    These become columns of W&B's tables.
    """
    summary = record.summary or {}
    about = {field: summary[field] for field in ABOUT if field in summary}
    # `model`, `eval`, `protocol` and `method` are nodes of the configuration, so their names are in the node `setting`.
    config = {**record.config, "budget": written(record.budget)}  # null for the full cache
    return {**config, "setting": _place(record), **about, "environment": summary.get("environment", {})}


def measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a summary without nesting: scores and fidelity by name, and the bounds of intervals."""
    numbers = {field: summary[field] for field in MEASURED if field in summary}
    numbers |= summary.get("scores", {})
    numbers |= _bounds("score", summary.get("interval"))
    for field, mean in summary.get("fidelity", {}).items():
        numbers |= {field: mean["mean"], **_bounds(field, mean["interval"])}
    return numbers


def overview(named: Mapping[Record, Name]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of settings, with their names and numbers."""
    rows = [{"name": str(name), **_place(record), **measured(record.summary or {})} for record, name in named.items()]
    if any(isinstance(row["budget"], str) for row in rows):  # a share of the prompt is text; a W&B column has one type
        rows = [row | {"budget": None if row["budget"] is None else str(row["budget"])} for row in rows]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, [[row.get(column) for column in columns] for row in rows]


def means(records: Sequence[Record]) -> Iterator[tuple[str, tuple[list[str], list[list[Any]]]]]:
    """Yield the tables of every model and evaluation by heading: columns, and a row for each setting."""
    for of_evaluation in groups_of([sound(record)[0] for record in records]):
        for table in hook(of_evaluation[0].kind, "tables")(of_evaluation):
            rows = [
                [str(row.name), *(row.cells[column].mean if column in row.cells else None for column in table.columns)]
                for row in table.rows
            ]
            yield text.heading(table), (["setting", *map(table.head, table.columns)], rows)


def samples(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of the table of samples."""
    lines = record.covered
    known = set().union(*lines)
    own = dict.fromkeys(field for line in lines for field in own_fields(line))
    columns = ["id", *own, *(column for column in COLUMNS if column in known)]
    columns += sorted(field for field in known if field == "score" or field.startswith("score_"))
    return columns, [[_cell(line.get(column)) for column in columns] for line in lines]


def _bounds(field: str, interval: Sequence[float] | None) -> dict[str, float]:
    return {} if interval is None else {f"{field}_low": interval[0], f"{field}_high": interval[1]}


def _place(record: Record) -> dict[str, Any]:
    return {**{field: getattr(record, field) for field in NAMED}, "budget": written(record.budget)}
