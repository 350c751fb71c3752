"""Settings of the LongBench evaluation (`conf/eval/longbench.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from compresskv.checking import Ge, Le, MinLen, PathText, Sha256
from evals.job import SampledEvaluation
from evals.longbench.data import load_task, open_source, refuse_missing
from evals.longbench.tasks import select_tasks


@dataclass(frozen=True)
class LongBench(SampledEvaluation):
    """Settings of LongBench.

    `data`: hub, a zip, or a directory. `tasks`: english, all21, or names. `limit`: number of rows to use from the start
    of each task. `max_length`: maximum tokens of prompt and answer; null follows the protocol's `longbench_truncation`.
    `sha256`: checksum of an archive; `revision`: revision of the hub repository; null uses the pinned values.
    """

    data: PathText
    tasks: PathText | Annotated[tuple[PathText, ...], MinLen(1)]
    limit: Annotated[int, Ge(1), Le(1_000_000)] | None
    max_length: Annotated[int, Ge(2), Le(100_000_000)] | None
    sha256: Sha256 | None
    revision: PathText | None

    def units(self) -> Mapping[str, Mapping[str, Any]]:
        return {task.name: {"tasks": [task.name]} for task in select_tasks(self.tasks)}

    @cached_property
    def folder(self) -> Path:
        """Folder of task.jsonl files that `data` refers to."""
        return open_source(self.data, sha256=self.sha256, revision=self.revision)

    def check(self) -> None:
        tasks = select_tasks(self.tasks)
        refuse_missing(self.folder, tasks)
        for task in tasks:
            load_task(self.folder, task, self.limit)
