"""Settings of the RULER evaluation (`conf/eval/ruler.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from compresskv.checking import Ge, Le, MinLen, PathText
from compresskv.errors import UserError, note
from compresskv.inputs import expanded
from evals.haystack import essays
from evals.job import SampledEvaluation
from evals.ruler import questions, words
from evals.ruler.essays import HAYSTACK
from evals.ruler.tasks import TASKS, Task, select_tasks

Tokens = Annotated[int, Ge(1), Le(100_000_000)]


@dataclass(frozen=True)
class Ruler(SampledEvaluation):
    """Settings of RULER.

    `tasks`: all, or names. `lengths`: tokens of a prompt and its answer, without the chat format. `samples`: number of
    samples for each task and length. `seed`: seed of the random text. `qa`: the folder with the question files.
    `template_tokens`: tokens of each length reserved for the chat format (RULER's `model_template_token`).
    """

    tasks: PathText | Annotated[tuple[PathText, ...], MinLen(1)]
    lengths: Annotated[tuple[Tokens, ...], MinLen(1)]
    samples: Annotated[int, Ge(1), Le(1_000_000)]
    seed: Annotated[int, Ge(0), Le(2**32 - 1)]
    qa: PathText | None
    template_tokens: Annotated[int, Ge(0), Le(100_000)]

    def units(self) -> Mapping[str, Mapping[str, Any]]:
        return {task.name: {"tasks": [task.name]} for task in self.chosen}

    @cached_property
    def folder(self) -> Path | None:
        """Folder of the question files. Raises `UserError` if it does not exist."""
        if self.qa is None:
            return None
        folder = expanded(self.qa, "eval.qa")
        if not folder.is_dir():
            raise UserError("eval.qa", "give the folder of RULER's files", value=folder, why="not a folder")
        return folder

    @cached_property
    def chosen(self) -> tuple[Task, ...]:
        """The tasks to run."""
        files = [file for file in questions.FILES.values() if self.folder and (self.folder / file).exists()]
        return select_tasks(self.tasks, files)

    def check(self) -> None:
        for task in self.chosen:
            if task.questions and self.folder:
                count = len(questions.read(self.folder / task.questions).questions)
                if self.samples > count:
                    why = f"{task.questions} has {count} questions"
                    raise UserError("eval.samples", "choose fewer", value=self.samples, why=why)
            if "words" in task.needs:
                words.keys()
            if "essays" in task.needs:
                essays(HAYSTACK)
        if left := [task.name for task in TASKS.values() if self.tasks == "all" and task not in self.chosen]:
            note(f"eval=ruler leaves out {' and '.join(left)}: eval.qa has no file of their questions")
