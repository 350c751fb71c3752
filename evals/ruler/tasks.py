"""The RULER tasks, read from tasks.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compresskv.errors import UserError

SOURCE = "NVIDIA/RULER c3f5e3b"
"""Source of prompts, arguments and the order of random calls."""


@dataclass(frozen=True)
class Task:
    """One RULER task; the fields are explained at the top of tasks.yaml."""

    name: str
    family: str
    category: str
    head: str
    needs: tuple[str, ...]
    max_new_tokens: int
    metric: str
    template: str
    answer_prefix: str
    arguments: Mapping[str, Any] = field(hash=False)

    @property
    def questions(self) -> str | None:
        """Name of the question file that the task is made from; None if it does not use one."""
        return next((name for name in self.needs if name.endswith(".json")), None)


def load_tasks() -> dict[str, Task]:
    """Load all 13 tasks by name, in RULER's order."""
    content = yaml.safe_load(Path(__file__).with_name("tasks.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, fields in content["tasks"].items():
        whole = {**content["families"][fields["family"]], **fields, "needs": tuple(fields["needs"])}
        found[name] = Task(name=name, **whole)
    return found


TASKS = load_tasks()


def select_tasks(selection: str | Sequence[str], files: Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of a selection: "all", one name, or a list of names.

    "all" leaves out tasks whose question file is not among the available `files`. Duplicates are dropped.
    """
    if selection == "all":
        return tuple(task for task in TASKS.values() if task.questions in (None, *files))
    names = (selection,) if isinstance(selection, str) else selection
    if not names:
        raise UserError("eval.tasks", "name at least one, or use all", value=names)
    for name in names:
        if name not in TASKS:
            raise UserError("eval.tasks", f"choose from {', '.join(TASKS)}, or all", value=name, why="not a RULER task")
        if (file := TASKS[name].questions) not in (None, *files):
            fix = "give the folder that RULER's download_qa_dataset.sh writes"
            raise UserError("eval.qa", fix, why=f"{name} needs its {file}")
    return tuple(TASKS[name] for name in dict.fromkeys(names))
