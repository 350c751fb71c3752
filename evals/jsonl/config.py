"""Settings of a task of one's own (`conf/eval/jsonl.yaml`); `evals.jsonl.records` says what its file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from compresskv.checking import Ge, Le, PathText
from compresskv.errors import UserError
from compresskv.inputs import expanded, read_once
from evals.evaluation import SampledEvaluation

if TYPE_CHECKING:
    from compresskv.models import LoadedModel
    from compresskv.protocol import EvaluationProtocol
    from evals.jsonl.evaluation import JsonlTask
    from evals.jsonl.records import Record as DataRecord


@dataclass(frozen=True)
class Jsonl(SampledEvaluation):
    """`data`: the file, whose name without suffix names the task; `limit`: only its first records.

    `metric` and `max_new_tokens` (tokens) are those of records that set none; null: every record sets its own.
    """

    data: PathText
    metric: PathText | None
    max_new_tokens: Annotated[int, Ge(1), Le(100_000)] | None
    limit: Annotated[int, Ge(1), Le(1_000_000)] | None

    @property
    def path(self) -> Path:
        return expanded(self.data, "eval.data")

    @cached_property
    def file(self) -> tuple[Sequence[DataRecord], str]:
        """All records of the file, and a hash of the bytes that they were read from.

        Raises `UserError` for a metric that does not exist, and for what is wrong with the file.
        """
        from evals.jsonl.records import METRICS, read_records

        if self.metric is not None and self.metric not in METRICS:
            raise UserError("eval.metric", f"choose one of {', '.join(METRICS)}", value=self.metric)
        content = read_once(self.path, "eval.data")
        records = read_records(self.path, self.metric, self.max_new_tokens, content)
        return records, hashlib.sha256(content).hexdigest()[:16]

    def check(self) -> None:
        _ = self.file

    def make_tasks(self, model: LoadedModel, protocol: EvaluationProtocol) -> Sequence[JsonlTask]:
        from evals.jsonl.evaluation import JsonlTask

        return [JsonlTask(self, model, protocol)]
