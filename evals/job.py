"""What a run is made of: plain types, without torch. `evals.compose` makes jobs of a configuration.

An evaluation is a frozen dataclass of its settings, named by `_target_` in `conf/eval/<name>.yaml`. It lives in a
separate package, in this tree or anywhere that can be imported. Code that needs torch is in the module `evaluation` of
that package, which is imported when the evaluation runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from compresskv.budget import Budget
from compresskv.checking import Name
from compresskv.errors import UserError
from compresskv.methods import MethodConfig
from compresskv.model_config import ModelConfig
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from compresskv.schedule import EvictionSchedule
from evals.tables.methods import Name as SettingName
from evals.tables.methods import named

if TYPE_CHECKING:
    from torch import Tensor

    from compresskv.engine.decode import Stopping
    from compresskv.engine.setting import Setting
    from compresskv.models import LoadedModel
    from evals.progress import Progress
    from evals.results.measurement import Measurement
    from evals.results.record import Record


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation; subclasses add their own fields, with types and ranges.

    `alone`: it measures time, so it must have the machine to itself. `evicts`: it runs the method at the budget.
    `asks`: its prompts end in a question, so eviction may happen before it. `decodes`: eviction may continue while it
    generates.
    """

    name: Name

    alone: ClassVar[bool] = False
    evicts: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    decodes: ClassVar[bool] = False

    def units(self) -> Mapping[str, Mapping[str, Any]]:
        """The parts that can run apart, by name, each with the settings that leave only this part.

        An evaluation that cannot be split is one nameless unit.
        """
        return {"": {}}

    def check(self) -> None:
        """Raise `UserError` for what is wrong with the data, as far as that shows without a model and without torch."""

    @property
    def code(self) -> ModuleType:
        """The module `evaluation` of the package that the class, or one that it extends, is in."""
        for kind in type(self).__mro__:
            package = kind.__module__.rpartition(".")[0]
            if package and find_spec(f"{package}.evaluation"):
                return import_module(f"{package}.evaluation")
        raise UserError(
            "eval._target_",
            "add the module evaluation to its package, or override the method that runs it",
            value=f"{type(self).__module__}.{type(self).__name__}",
        )


class SampledEvaluation(Evaluation):
    """An evaluation whose score is the mean over samples: the harness runs its tasks, resumes them and stores them."""

    evicts: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def make_tasks(self, model: LoadedModel, protocol: EvaluationProtocol) -> Sequence[Task]:
        """All tasks under one protocol, in the same order under each: `make_tasks(model, self, protocol)` of `code`.

        Raises `UserError` for unusable settings.
        """
        return self.code.make_tasks(model, self, protocol)


class MeasuredEvaluation(Evaluation):
    """An evaluation that is not a mean over samples, such as a measurement of time: it runs and shows by itself."""

    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        """Run all `jobs`, which share this evaluation: `run(model, self, jobs, progress)` of `code`.

        Returns the path of what was written. Raises `UserError`.
        """
        return self.code.run(model, self, jobs, progress)

    def plan(self, model: LoadedModel, jobs: Sequence[Job]) -> Sequence[Work]:
        """What is missing of `jobs`, for `plan=true`: `works(model, self, jobs)` of `code`.

        Raises `UserError` where that cannot be known.
        """
        if not hasattr(self.code, "works"):
            why = f"eval={self.name} measures by itself, and has no plan"
            raise UserError("plan", "leave it out", value=True, why=why)
        return self.code.works(model, self, jobs)


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


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt, `ids` [prompt], int64. `record` goes into its line; `score(prediction)` gives at least `score`.

    `reference`: the answer that is looked for, as the model would write it right after the prompt; "" for none.
    `context`: how many of `ids` come before the question; 0 where the sample does not divide the two.
    """

    id: str
    ids: Tensor
    stopping: Stopping
    score: Callable[[str], dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    context: int = 0


Report = Callable[[str, int, int], None]
"""Takes what is being run, such as a task, how many of its prompts are done, and how many there are."""


@dataclass(frozen=True)
class Logger(ABC):
    """Sends results on to a service; the local files stay the truth.

    A frozen dataclass of its settings, named by `_target_` in `conf/logger/<name>.yaml`.
    """

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` before a run for what would fail after it, such as a missing login."""

    @abstractmethod
    def watched(self, jobs: Sequence[Job]) -> AbstractContextManager[Report]:
        """While `jobs` run: a function that sends how far they are. It never ends a run."""

    @abstractmethod
    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        """Send on finished `records`, and the figures of the run."""

    @abstractmethod
    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Send on what evaluations without samples wrote, such as times or a calibration."""


@dataclass(frozen=True)
class Job:
    """A model, a method at a budget (None for the full cache), an evaluation and a protocol.

    `prefill_chunk` in tokens; `memory`: GB that a prompt and its decode batch may take beside the model; None: what is
    free. `fidelity`: along what the distance from the full cache is measured, the full cache's "answer" or so
    many tokens of it; None: not at all. `config` is the configuration that all of it came from. `apart`: what tells it
    from the others in a sweep that have the same method and budget.
    """

    model: ModelConfig
    method: MethodConfig
    budget: Budget | None
    eval: Evaluation
    protocol: EvaluationProtocol
    observation: ObservationConfig
    eviction: EvictionSchedule
    calibration: str
    calibration_check: str
    prefill_chunk: int | None
    memory: float | None
    fidelity: int | Literal["answer"] | None
    results: Path
    logger: Logger | None
    config: Mapping[str, Any] = field(hash=False, repr=False, default_factory=dict)
    apart: str = field(compare=False, default="")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else int(self.memory * 1e9)

    def new_tokens(self, task: Task) -> int:
        """How many tokens may follow a prompt of the task."""
        return max(task.max_new_tokens, self.fidelity if isinstance(self.fidelity, int) else 0)

    @property
    def setting(self) -> str:
        """Method and budget, and when eviction happens if not after the prompt."""
        return str(SettingName(named(self.method.name), self.budget, when=self.eviction.when))

    @property
    def label(self) -> str:
        """Method and budget, and the protocol if it is not the default."""
        protocol = self.protocol.label
        marked = protocol != "corrected"
        return str(SettingName(named(self.method.name), self.budget, protocol, marked=marked, when=self.eviction.when))

    @property
    def name(self) -> str:
        """The label, with what tells it from others in its sweep."""
        return f"{self.label} {self.apart}".rstrip()


@dataclass(frozen=True)
class Work:
    """What is missing of a task: jobs that share each prefill, with their settings, and the prompts that any lacks.

    `name` is that of the task. `times`: how many times each prompt is decoded with all settings, in the mean.
    `finished`: how many other settings were asked for and have all their samples.
    """

    model: LoadedModel
    name: str
    task: Task
    jobs: Sequence[Job]
    settings: Sequence[Setting]
    prompts: Sequence[str]
    times: float = 1
    finished: int = 0


@dataclass(frozen=True)
class Entry:
    """What became of one setting on one task. `note` counts its samples, or says in a sentence why it failed.

    It is incomplete where some of its prompts have no result, as their lines say. A failure that is a defect has its
    traceback in `detail`. What tried all samples has its `folder`, and in `samples` their ids; a measurement, which has
    no samples, the file that it has `written`.
    """

    model: str
    eval: str
    task: str
    setting: str
    state: Literal["ran", "resumed", "incomplete", "failed"]
    note: str
    detail: str = ""
    folder: str | None = None
    samples: tuple[str, ...] = ()
    written: str | None = None

    @property
    def faulty(self) -> bool:
        """What a sweep must not end with as if all were well."""
        return self.state in ("incomplete", "failed")
