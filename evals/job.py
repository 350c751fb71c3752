"""Types that make up a run, without torch. `evals.compose` creates jobs from a configuration.

An evaluation is a frozen dataclass of its settings, named by `_target_` in `conf/eval/<name>.yaml`. It lives in a
separate package, in this tree or in any other importable package. Code that needs torch is in the module `evaluation`
of that package, which is imported when the evaluation runs.
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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from compresskv.budget import Budget
from compresskv.checking import Ge, Le, Name, checked, checked_value
from compresskv.engine_config import EngineConfig
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
    """The settings of an evaluation. Subclasses add fields with types and ranges.

    - `alone`: the evaluation measures time, so no other job may run on the machine.
    - `evicts`: it runs the method at the budget.
    - `asks`: its prompts end in a question, so eviction can happen before the question.
    - `decodes`: eviction can continue while it generates.
    """

    name: Name

    alone: ClassVar[bool] = False
    evicts: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    decodes: ClassVar[bool] = False

    def units(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the parts that can run separately, by name, each with the settings that select only this part.

        An evaluation that cannot be split has one unit with an empty name.
        """
        return {"": {}}

    def check(self) -> None:
        """Check the data as far as possible without a model and torch. Raises `UserError` if it is invalid."""

    @property
    def code(self) -> ModuleType:
        """The module `evaluation` in the package of this class, or else of a base class."""
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
    """An evaluation whose score is the mean over samples. The harness runs, resumes and stores its tasks."""

    evicts: ClassVar[bool] = True
    asks: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def make_tasks(self, model: LoadedModel, protocol: EvaluationProtocol) -> Sequence[Task]:
        """Make all tasks for one protocol with `make_tasks` of `code`, in the same order for every protocol."""
        return self.code.make_tasks(model, self, protocol)


class MeasuredEvaluation(Evaluation):
    """An evaluation without samples, such as a measurement of time. It implements running and showing itself."""

    def run(self, model: LoadedModel, jobs: Sequence[Job], progress: Progress) -> Path:
        """Run all `jobs`, which share this evaluation, with `run` of `code`. Returns the path of the file written."""
        return self.code.run(model, self, jobs, progress)

    def plan(self, model: LoadedModel, jobs: Sequence[Job]) -> Sequence[Work]:
        """Return the missing work of `jobs` for `plan=true`, from `works` of `code`, if it has this function."""
        if not hasattr(self.code, "works"):
            why = f"eval={self.name} does not support plan=true"
            raise UserError("plan", "leave it out", value=True, why=why)
        return self.code.works(model, self, jobs)


class Task(Protocol):
    """A named set of samples under one protocol.

    `identity` holds everything that can change a prediction, apart from model and method. `longest_prompt` is the
    number of tokens, exact or approximate, for which memory is planned.
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


def refuse_too_long(
    model: LoadedModel,
    prompt: int,
    new_tokens: int,
    field: str,
    fix: str,
    kind: type[UserError] = UserError,
    **about: Any,
) -> None:
    """Raise an error about `field` if a `prompt` of this many tokens and its `new_tokens` exceed the model's window."""
    if prompt + new_tokens > model.window:
        why = f"a prompt of {prompt} tokens and {new_tokens} new tokens exceed the {model.window}-token window"
        raise kind(field, fix, why=f"{why} of {model.name}", **about)


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt, `ids` [prompt], int64.

    - `score(prediction)`: returns a dict with at least `score`.
    - `record`: fields to add to the sample's line.
    - `reference`: the expected answer, as the model would write it right after the prompt; "" without a reference.
    - `context`: number of `ids` before the question; 0 if the sample does not separate context and question.
    """

    id: str
    ids: Tensor
    stopping: Stopping
    score: Callable[[str], dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)
    reference: str = ""
    context: int = 0


Report = Callable[[str, int, int], None]
"""Callback for progress: takes a title, such as a task, the number of finished prompts, and their total number."""


@dataclass(frozen=True)
class Logger(ABC):
    """Sends results to a service. It is a dataclass of its settings, named in `conf/logger/<name>.yaml`."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` before a run for a problem that would make logging fail, such as a missing login."""

    @abstractmethod
    def watched(self, jobs: Sequence[Job]) -> AbstractContextManager[Report]:
        """Return a context for running `jobs`, which yields a function that sends their progress and never raises."""

    @abstractmethod
    def log(self, records: Sequence[Record], figures: Sequence[Path]) -> None:
        """Send finished `records` and the figures of the run."""

    @abstractmethod
    def log_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Send the files of evaluations without samples, such as times or a calibration."""


@dataclass(frozen=True)
class Fidelity:
    """`conf/config.yaml: fidelity`: the text on which each setting is compared with the full cache.

    `tokens`: the full cache's "answer", or this many tokens of its continuation; None for no comparison. A
    configuration may have the short form: true for "answer", false for None. Results store the short form.
    """

    tokens: Literal["answer"] | Annotated[int, Ge(2), Le(100_000_000)] | None = None

    @classmethod
    def of(cls, node: Any) -> Fidelity:
        """Check a mapping or a short form. Raises `UserError`."""
        if isinstance(node, Mapping):
            return checked("fidelity", cls, node)
        return cls("answer" if checked_value("fidelity", bool, node) else None)

    @staticmethod
    def shortened(node: Any) -> Any:
        """Return the short form of a mapping if a short form exists."""
        return next((short for short in (True, False) if node == vars(Fidelity.of(short))), node)


@dataclass(frozen=True)
class Export:
    """`conf/config.yaml: export`. `kept`: whether to write which tokens each setting kept."""

    kept: bool = False


@dataclass(frozen=True)
class Job:
    """A model, a method at a budget (None for the full cache), an evaluation and a protocol.

    - `prefill_chunk`: tokens per chunk of the prefill.
    - `memory`: GB for a prompt and its decode batch, in addition to the model; None for all free memory.
    - `fidelity`: the `tokens` of `Fidelity`.
    - `config`: the configuration from which the job was made.
    - `apart`: text that distinguishes the job from other jobs of its sweep with the same method and budget.
    """

    model: ModelConfig
    method: MethodConfig
    budget: Budget | None
    eval: Evaluation
    protocol: EvaluationProtocol
    observation: ObservationConfig
    eviction: EvictionSchedule
    engine: EngineConfig
    calibration: str
    calibration_check: str
    prefill_chunk: int | None
    memory: float | None
    fidelity: int | Literal["answer"] | None
    export: Export
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
        """Method and budget, and the time of eviction unless it is after the prompt."""
        return str(SettingName(named(self.method.name), self.budget, when=self.eviction.when))

    @property
    def label(self) -> str:
        """The text of `setting`, and the protocol unless it is the default."""
        protocol = self.protocol.label
        marked = protocol != "corrected"
        return str(SettingName(named(self.method.name), self.budget, protocol, marked=marked, when=self.eviction.when))

    @property
    def name(self) -> str:
        """The label, followed by `apart`."""
        return f"{self.label} {self.apart}".rstrip()


@dataclass(frozen=True)
class Work:
    """The missing work of a task: jobs that share each prefill, their settings, and the prompts that any job lacks.

    - `name`: name of the task.
    - `times`: mean number of times that each prompt is decoded with all settings.
    - `finished`: number of further requested settings that have all their samples.
    """

    model: LoadedModel
    name: str
    task: Task
    jobs: Sequence[Job]
    settings: Sequence[Setting]
    prompts: Sequence[str]
    times: float = 1
    finished: int = 0


State = Literal["ran", "resumed", "incomplete", "failed"]


@dataclass(frozen=True)
class Entry:
    """The outcome of one setting on one task.

    - `state`: "incomplete" means that all samples were tried, but some have no result.
    - `note`: the number of samples, or the reason of the failure.
    - `detail`: the traceback of a failure that is a defect.
    - `folder`, `samples`: the results folder and the sample ids of a setting whose samples were all tried.
    - `written`: the file of a measurement, which has no samples.
    """

    model: str
    eval: str
    task: str
    setting: str
    state: State
    note: str
    detail: str = ""
    folder: str | None = None
    samples: tuple[str, ...] = ()
    written: str | None = None

    @property
    def faulty(self) -> bool:
        """Whether the sweep must end with an error because of this entry."""
        return self.state in ("incomplete", "failed")
