"""RULER tasks: make the prompts of a task at every length, and score the answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compresskv.chat import question_start
from compresskv.engine.decode import Stopping
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Sample, refuse_too_long
from evals.metrics.answers import string_match_all, string_match_part
from evals.ruler import questions, words
from evals.ruler.config import Ruler
from evals.ruler.drawing import Drawn
from evals.ruler.essays import essays_fingerprint
from evals.ruler.samples import ANSWERS, Stream, samples
from evals.ruler.tasks import SOURCE, Task

CONTROL = re.compile("[\x00-\x1f]")

METRICS = {"string_match_all": string_match_all, "string_match_part": string_match_part}


def make_tasks(model: LoadedModel, config: Ruler, protocol: EvaluationProtocol) -> "list[RulerTask]":
    """Return the selected tasks. Raises `UserError` for lengths that exceed the model's window."""
    return [RulerTask(config, task, model, protocol) for task in config.chosen]


def score(metric: str, prediction: str, outputs: Sequence[str]) -> float:
    """Score a prediction, 0 to 100, as scripts/eval of NVIDIA/RULER c3f5e3b: whether the text contains the answers.

    White space around it is dropped, and control characters become line breaks.
    """
    return 100 * METRICS[metric](CONTROL.sub("\n", prediction.strip()).strip(), outputs)


@dataclass(frozen=True)
class Prompt:
    """The text that the model receives. `question`: the part after the context, as kvpress splits RULER."""

    text: str
    question: str


@dataclass(frozen=True)
class RulerTask:
    """A RULER task. Sample ids are `L<length>-S<number>`, numbers from 0. A sample does not depend on how many run."""

    config: Ruler
    task: Task
    model: LoadedModel
    protocol: EvaluationProtocol

    def __post_init__(self) -> None:
        for length in self.config.lengths:
            self._refuse_too_long(length, self._longest(length))

    def _refuse_too_long(self, length: int, prompt: int) -> None:
        fix = "choose shorter lengths, or reserve more tokens for the chat format with eval.template_tokens"
        refuse_too_long(self.model, prompt, self.max_new_tokens, "eval.lengths", fix, value=length)

    def _longest(self, length: int) -> int:
        """Return the maximum tokens of a prompt of this length in the chat format."""
        return length - self.config.template_tokens + self._chat_tokens - self.max_new_tokens

    @cached_property
    def _chat_tokens(self) -> int:
        """Number of tokens that the chat format adds, including a BOS."""
        alone = self.model.tokenizer("x", add_special_tokens=False).input_ids
        return self.model.encode(self.model.chat("x")).numel() - len(alone)

    @property
    def name(self) -> str:
        return self.task.name

    @cached_property
    def places(self) -> Mapping[str, tuple[int, int]]:
        """Length and number of every sample, by its id."""
        return {
            f"L{length}-S{number}": (length, number)
            for length in self.config.lengths
            for number in range(self.config.samples)
        }

    @cached_property
    def streams(self) -> Mapping[int, Stream]:
        """Streams of samples, by length."""
        seed, folder, left = self.config.seed, self.config.folder, self.config.template_tokens
        return {
            length: Stream(samples(self.task, self.model.tokenizer, length, seed, folder, left))
            for length in self.config.lengths
        }

    @property
    def sample_ids(self) -> Sequence[str]:
        return list(self.places)

    @property
    def longest_prompt(self) -> int:
        return self._longest(max(self.config.lengths))

    @property
    def max_new_tokens(self) -> int:
        return self.task.max_new_tokens

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        folder, file = self.config.folder, self.task.questions
        return {
            "source": SOURCE,
            "seed": self.config.seed,
            "template_tokens": self.config.template_tokens,
            "max_new_tokens": self.max_new_tokens,
            "chat_template": self.model.chat_template,
            **({"wonderwords": words.RELEASE} if "words" in self.task.needs else {}),
            **({"essays": essays_fingerprint()} if "essays" in self.task.needs else {}),
            **({"questions": questions.read(folder / file).fingerprint} if file and folder else {}),
        }

    def drawn(self, id: str) -> Drawn:
        """Return the sample in the format of RULER's files."""
        length, number = self.places[id]
        return self.streams[length][number]

    def prompt(self, id: str) -> Prompt:
        """Return the sample in the model's chat format."""
        drawn = self.drawn(id)
        return Prompt(self.model.chat(drawn.input, drawn.answer_prefix), drawn.input[drawn.question :].strip())

    def sample(self, id: str) -> Sample:
        length, _ = self.places[id]
        drawn, prompt = self.drawn(id), self.prompt(id)
        outputs, ids = drawn.outputs, self.model.encode(prompt.text)
        self._refuse_too_long(length, ids.numel())
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(self.max_new_tokens, self.model.stop_ids, settings=settings)
        record = {"length": length, "prompt_tokens": ids.numel(), "truncated": False, "answers": outputs}
        reference = ANSWERS[self.task.family](outputs)
        tokenizer, prefix = self.model.tokenizer, drawn.answer_prefix
        context = question_start(prompt.text, prompt.question, ids.tolist(), tokenizer, prefix)

        def scored(answer: str) -> dict[str, float]:
            return {"score": score(self.task.metric, answer, outputs)}

        return Sample(id, ids, stopping, scored, record, reference, context)
