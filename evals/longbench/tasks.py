"""The LongBench tasks, read from tasks.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from compresskv.errors import UserError


@dataclass(frozen=True)
class Task:
    """One LongBench task; the fields are explained at the top of tasks.yaml."""

    name: str
    head: str
    category: str
    language: str
    n: int
    metric: str
    max_new_tokens: int
    chat_wrapper: bool
    first_line: bool
    stop: str
    min_new_tokens: int
    prompt: str


def load_tasks() -> dict[str, Task]:
    """Load all 21 tasks by name, in the order of the official configuration files."""
    with open(Path(__file__).with_name("tasks.yaml"), encoding="utf-8") as file:
        return {name: Task(name=name, **fields) for name, fields in yaml.safe_load(file).items()}


TASKS = load_tasks()
ALL = tuple(TASKS)
ENGLISH = tuple(name for name, task in TASKS.items() if task.language == "en")
CATEGORIES = tuple(dict.fromkeys(task.category for task in TASKS.values()))


def get_task(name: str) -> Task:
    """Return the task with this name. Raises `UserError` if it is unknown."""
    if name not in TASKS:
        raise UserError("eval.tasks", f"choose from {', '.join(ALL)}", value=name, why="not a LongBench task")
    return TASKS[name]


def select_tasks(selection: str | Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of a selection: "english" (16), "all21", one name, or a list of names; drops duplicates."""
    groups = {"english": ENGLISH, "all21": ALL}
    names = groups.get(selection, (selection,)) if isinstance(selection, str) else selection
    if not names:
        raise UserError("eval.tasks", "name at least one, or use english or all21", value=names)
    return tuple(get_task(name) for name in dict.fromkeys(names))
