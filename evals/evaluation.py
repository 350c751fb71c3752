"""What an evaluation is: settings from one YAML, tasks of samples or a run of its own, and what it shows of results.

An evaluation is a frozen dataclass of its settings, named by `_target_` in `conf/eval/<name>.yaml`. It lives in a
folder of its own, in this package or anywhere that can be imported, and does not need torch: what does is imported by
the methods that run.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import yaml

from compresskv.checking import Name
from compresskv.errors import UserError
from compresskv.folders import CONF

if TYPE_CHECKING:
    from torch import Tensor

    from compresskv.engine.decode import Stopping
    from compresskv.models import LoadedModel
    from compresskv.protocol import EvaluationProtocol
    from evals.job import Job
    from evals.progress import Progress
    from evals.running.plan import Work


TITLES = {"niah": "needle in a haystack", "longbench": "LongBench", "head_masking": "head masking"}
"""How evaluations of `conf/eval` are headed, by name, where that is not their name."""


def kind_of(target: str) -> str:
    """The name in `conf/eval` of the evaluation that `_target_` names, wherever in its package; else `target`."""
    for name, known in targets().items():
        if target.split(".")[:-2] == known.split(".")[:-2]:
            return name
    return target


def reserved(name: str) -> str | None:
    """The name in `conf/eval` of the evaluation that a reader takes `name` for; None where it is no built-in one."""
    for known in targets():
        if _spelt(name) in (_spelt(known), _spelt(TITLES.get(known, known))):
            return known
    return None


@cache
def targets() -> dict[str, str]:
    """The `_target_` of each evaluation of `conf/eval`, by its name there."""
    return {path.stem: yaml.safe_load(path.read_bytes())["_target_"] for path in sorted((CONF / "eval").glob("*.yaml"))}


def _spelt(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation; subclasses add their own fields, with types and ranges.

    `alone`: it measures time, so it must have the machine to itself. `evicts`: it runs the method at the budget.
    """

    name: Name

    alone: ClassVar[bool] = False
    evicts: ClassVar[bool] = False

    def units(self) -> Mapping[str, str | None]:
        """The parts that can run apart, by name, each with the override that leaves only this part.

        An evaluation that cannot be split is one nameless unit.
        """
        return {"": None}

    def check(self) -> None:
        """Raise `UserError` for what is wrong with the data, as far as that shows without a model and without torch."""


class SampledEvaluation(Evaluation, ABC):
    """An evaluation whose score is the mean over samples: the harness runs its tasks, resumes them and stores them."""

    evicts: ClassVar[bool] = True

    @abstractmethod
    def make_tasks(self, model: LoadedModel, protocol: EvaluationProtocol) -> Sequence[Task]:
        """All tasks under one protocol; in the same order under each. Raises `UserError` for unusable settings."""


class MeasuredEvaluation(Evaluation, ABC):
    """An evaluation that is no mean over samples, such as a measurement of time: it runs and shows by itself."""

    @abstractmethod
    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        """Run all `jobs`, which share this evaluation; returns the path of what was written. Raises `UserError`."""

    def plan(self, model: LoadedModel, jobs: Sequence[Job]) -> Sequence[Work]:
        """What is missing of `jobs`, for `plan=true`. Raises `UserError` where that cannot be known."""
        raise UserError("plan", "leave it out", value=True, why=f"eval={self.name} measures by itself, and has no plan")


class Task(Protocol):
    """Samples of one name under one protocol; `identity` is what can change a prediction besides model and method.

    `longest_prompt` (tokens, or about as many) is what memory has to suffice for.
    """

    @property
    def name(self) -> str: ...

    @property
    def sample_ids(self) -> Sequence[str]: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def longest_prompt(self) -> int: ...

    @property
    def max_new_tokens(self) -> int: ...

    def sample(self, id: str) -> Sample: ...

    def first_prompt(self) -> int:
        """Length, in tokens, of the first sample in dataset order, whether or not it runs."""
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt, `ids` [prompt], int64. `record` goes into its line; `score(prediction)` gives at least `score`.

    `reference`: the answer that is looked for, as the model would write it right after the prompt; "" if there is none.
    """

    id: str
    ids: Tensor
    stopping: Stopping
    score: Callable[[str], dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
