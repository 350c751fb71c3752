"""RULER tasks: make the prompts of a task at every length, and score the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compresskv.chat import question_start
from compresskv.engine.decode import Stopping
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Sample
from evals.ruler import essays, questions, words
from evals.ruler.config import Ruler
from evals.ruler.drawing import Drawn
from evals.ruler.metrics import score
from evals.ruler.prompts import ANSWERS, Prompt, render
from evals.ruler.samples import Stream, samples
from evals.ruler.tasks import SOURCE, Task


def make_tasks(model: LoadedModel, config: Ruler, protocol: EvaluationProtocol) -> "list[RulerTask]":
    """Return the selected tasks. Raises `UserError` for lengths that exceed the model's window."""
    return [RulerTask(config, task, model, protocol) for task in config.chosen]


@dataclass(frozen=True)
class RulerTask:
    """A RULER task. Sample ids are `L<length>-S<number>`, numbers from 0. A sample does not depend on how many run."""

    config: Ruler
    task: Task
    model: LoadedModel
    protocol: EvaluationProtocol

    def __post_init__(self) -> None:
        for length in self.config.lengths:
            self._refuse_beyond_window(length, length - self.config.template_tokens + self._chat_tokens)

    def _refuse_beyond_window(self, length: int, tokens: int) -> None:
        """Raise `UserError` if a prompt of this length and its answer have more `tokens` than the window."""
        if tokens > self.model.window:
            raise UserError(
                "eval.lengths",
                "choose shorter lengths, or reserve more tokens for the chat format with eval.template_tokens",
                value=length,
                why=f"with its chat format, it has {tokens} tokens and exceeds the {self.model.window}-token window of "
                f"{self.model.name}",
            )

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
        return max(self.config.lengths) - self.config.template_tokens + self._chat_tokens - self.max_new_tokens

    @property
    def max_new_tokens(self) -> int:
        return self.task.max_new_tokens

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "source": SOURCE,
            "seed": self.config.seed,
            "template_tokens": self.config.template_tokens,
            "max_new_tokens": self.max_new_tokens,
            "chat_template": self.model.chat_template,
            **({"wonderwords": words.RELEASE} if "words" in self.task.needs else {}),
            **({"essays": essays.fingerprint()} if "essays" in self.task.needs else {}),
            **self._questions,
        }

    @property
    def _questions(self) -> Mapping[str, str]:
        if not self.task.questions or not self.config.folder:
            return {}
        return {"questions": questions.read(self.config.folder / self.task.questions).fingerprint}

    def drawn(self, id: str) -> Drawn:
        """Return the sample in the format of RULER's files."""
        length, number = self.places[id]
        return self.streams[length][number]

    def prompt(self, id: str) -> Prompt:
        """Return the sample in the model's chat format."""
        return render(self.model, self.drawn(id))

    def sample(self, id: str) -> Sample:
        length, _ = self.places[id]
        outputs, prompt = self.drawn(id).outputs, self.prompt(id)
        ids = self.model.encode(prompt.text)
        self._refuse_beyond_window(length, ids.numel() + self.max_new_tokens)
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(self.max_new_tokens, self.model.stop_ids, settings=settings)
        record = {"length": length, "prompt_tokens": ids.numel(), "truncated": False, "answers": outputs}
        reference = ANSWERS[self.task.family](outputs)
        prefix = self.drawn(id).answer_prefix
        context = question_start(prompt.text, prompt.question, ids.tolist(), self.model.tokenizer, prefix)

        def scored(answer: str) -> dict[str, float]:
            return {"score": score(self.task.metric, answer, outputs)}

        return Sample(id, ids, stopping, scored, record, reference, context)
