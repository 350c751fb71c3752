"""Custom tasks: render the prompts of a task under one protocol, and score the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from compresskv.chat import question_start
from compresskv.checking import Name, checked_value
from compresskv.engine.decode import Stopping
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Sample, refuse_too_long
from evals.jsonl.config import Jsonl
from evals.jsonl.records import JOINED, JsonlRecord


def make_tasks(model: LoadedModel, config: Jsonl, protocol: EvaluationProtocol) -> "list[JsonlTask]":
    """Return one task with the records of the file."""
    return [JsonlTask(config, model, protocol)]


@dataclass(frozen=True)
class JsonlTask:
    """A custom task. Its samples are the records of the file. Prompts that are too long are refused, not truncated."""

    config: Jsonl
    model: LoadedModel
    protocol: EvaluationProtocol

    @cached_property
    def name(self) -> str:
        return checked_value("eval.data", Name, self.config.path.stem)

    @cached_property
    def records(self) -> Mapping[str, JsonlRecord]:
        return {record.id: record for record in self.config.file[0][: self.config.limit]}

    @property
    def sample_ids(self) -> Sequence[str]:
        return list(self.records)

    @cached_property
    def longest_prompt(self) -> int:
        """Number of tokens in the prompt with the most characters."""
        return self.encode(max(self.records.values(), key=lambda record: len(record.prompt)))[1].numel()

    @cached_property
    def max_new_tokens(self) -> int:
        return max(record.max_new_tokens for record in self.records.values())

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "data": self.config.file[1],
            "metric": self.config.metric,
            "max_new_tokens": self.config.max_new_tokens,
            "chat_template": self.model.chat_template,
        }

    def sample(self, id: str) -> Sample:
        record = self.records[id]
        text, ids = self.encode(record)
        settings = self.model.settings(self.protocol.generation_config)
        stopping = Stopping(record.max_new_tokens, self.model.stop_ids, settings=settings)
        details = {
            "prompt_tokens": ids.numel(),
            "truncated": False,
            "metric": record.metric,
            "answers": list(record.answers),
            "all_classes": list(record.all_classes) if record.all_classes else None,
        }
        question = record.question and JOINED + record.question
        context = question_start(text, question, ids.tolist(), self.model.tokenizer, record.answer_prefix)
        return Sample(
            id, ids, stopping, lambda answer: {"score": 100 * record.score(answer)}, details, record.answers[0], context
        )

    def encode(self, record: JsonlRecord) -> tuple[str, Tensor]:
        """Return the text of a record's prompt in the model's chat format, and its token ids [prompt]."""
        text = self.model.chat(record.prompt, record.answer_prefix)
        ids = self.model.encode(text)
        where, fix = f"{self.config.path}, record {record.id!r}", "shorten the prompt, or choose another model"
        refuse_too_long(self.model, ids.numel(), record.max_new_tokens, "prompt", fix, where=where)
        return text, ids
