"""Settings of a custom task (`conf/eval/jsonl.yaml`). `evals.jsonl.records` describes the format of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from compresskv.checking import Ge, Le, PathText
from compresskv.inputs import expanded, fingerprint, read_once
from evals.job import SampledEvaluation
from evals.jsonl.records import JsonlRecord, MetricName, NewTokens, read_records


@dataclass(frozen=True)
class Jsonl(SampledEvaluation):
    """Settings of a custom task.

    `data`: the file; its name without suffix is the name of the task. `limit`: number of records to use from its start.
    `metric` and `max_new_tokens` (tokens): defaults for records without this field; with null, all records must set it.
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
        """All records of the file, and a hash of the bytes they were read from."""
        content = read_once(self.path, "eval.data")
        return read_records(self.path, self.metric, self.max_new_tokens, content), fingerprint(content)

    def check(self) -> None:
        _ = self.file
