"""Settings of a task of one's own (`conf/eval/jsonl.yaml`); `evals.jsonl.records` says what its file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from compresskv.checking import Ge, Le, PathText
from compresskv.inputs import expanded, read_once
from evals.job import SampledEvaluation
from evals.jsonl.records import JsonlRecord, MetricName, NewTokens, read_records


@dataclass(frozen=True)
class Jsonl(SampledEvaluation):
    """`data`: the file, whose name without suffix names the task; `limit`: only its first records.

    `metric` and `max_new_tokens` (tokens) are those of records that set none; null: every record sets its own.
    """

    data: PathText
    metric: MetricName | None
    max_new_tokens: NewTokens | None
    limit: Annotated[int, Ge(1), Le(1_000_000)] | None

    @property
    def path(self) -> Path:
        return expanded(self.data, "eval.data")

    @cached_property
    def file(self) -> tuple[Sequence[JsonlRecord], str]:
        """All records of the file, and a hash of the bytes that they were read from.

        Raises `UserError` for what is wrong with the file.
        """
        content = read_once(self.path, "eval.data")
        records = read_records(self.path, self.metric, self.max_new_tokens, content)
        return records, hashlib.sha256(content).hexdigest()[:16]

    def check(self) -> None:
        _ = self.file
