"""What an evaluation gives to the runner: tasks of samples, each one prompt with a way to score the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from compresskv.generation import Stopping
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol


@dataclass(frozen=True, eq=False)
class Sample:
    """One prompt, `ids` [prompt]. `record` goes into the sample's line; `score(prediction)` gives at least `score`."""

    id: str
    ids: Tensor
    stopping: Stopping
    score: Callable[[str], dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Samples of one name under one protocol; `identity` is what can change a prediction besides model and method.

    `longest_prompt` tokens, or about as many, is what memory has to suffice for.
    """

    name: str
    sample_ids: Sequence[str]
    identity: dict[str, Any]
    longest_prompt: int
    max_new_tokens: int

    def sample(self, id: str) -> Sample: ...

    def first_prompt(self) -> int:
        """Length, in tokens, of the first sample in dataset order, whether or not it runs."""
        ...

    def breakdown(self, lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Mean scores of parts of the samples, by column name, for tables."""
        ...


TaskFactory = Callable[[LoadedModel, EvaluationProtocol], Task]
