"""Generate the samples of a task, in RULER's order."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock

from transformers import PreTrainedTokenizerBase

from compresskv.errors import UserError
from evals.ruler import common_words, frequent_words, niah, questions, variable_tracking
from evals.ruler.drawing import Drawn, Request
from evals.ruler.tasks import Task

GENERATORS: dict[str, Callable[..., Iterator[Drawn]]] = {
    "niah": niah.generate,
    "variable_tracking": variable_tracking.generate,
    "common_words_extraction": common_words.generate,
    "freq_words_extraction": frequent_words.generate,
    "qa": questions.generate,
}
"""Generators by family of tasks."""

ANSWERS: dict[str, Callable[[Sequence[str]], str]] = {
    "niah": niah.listed,
    "variable_tracking": " ".join,
    "common_words_extraction": common_words.numbered,
    "freq_words_extraction": niah.listed,
    "qa": lambda outputs: outputs[0],
}
"""Functions that write the answer of each family, in the format of the family's example, if any."""


def samples(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    seed: int,
    folder: Path | None = None,
    template_tokens: int = 0,
    one_line: bool = False,
) -> Iterator[Drawn]:
    """Return an iterator over the samples of a task, in order. Only tasks with a file of questions end.

    The other arguments are as in `Request`.
    """

    request = Request(task, tokenizer, length, seed, folder, template_tokens, one_line)
    return GENERATORS[task.family](request, **task.arguments)


class Stream:
    """Samples by number. Each sample is made once, after all samples before it.

    If no sample can be made, every access raises the `UserError` that says why.
    """

    def __init__(self, made: Iterator[Drawn]) -> None:
        self._rest, self._lock = made, Lock()
        self._made: list[Drawn] = []
        self._refusal: UserError | None = None

    def __getitem__(self, number: int) -> Drawn:
        with self._lock:
            if self._refusal:
                raise self._refusal
            try:
                self._made += islice(self._rest, max(0, number + 1 - len(self._made)))
            except UserError as error:
                self._refusal = error
                raise
            return self._made[number]
