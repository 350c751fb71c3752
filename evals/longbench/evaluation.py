"""LongBench tasks: render the prompts of a task under one protocol, and score the answers."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from compresskv.chat import question_start
from compresskv.engine.decode import Stopping
from compresskv.errors import UserError
from compresskv.inputs import fingerprint
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.job import Sample
from evals.longbench.config import LongBench
from evals.longbench.data import load_task, read_task
from evals.longbench.prompts import RELEASED_LONGEST, ChatWrapper, Prompt, render, stop_ids
from evals.longbench.records import Row
from evals.longbench.scoring import score_sample
from evals.longbench.tasks import Task, select_tasks


def make_tasks(model: LoadedModel, config: LongBench, protocol: EvaluationProtocol) -> "list[LongBenchTask]":
    """Return the selected tasks. Raises `UserError` if `max_length` exceeds the model's learned positions."""
    if config.max_length and model.positions and config.max_length > model.positions:
        raise UserError(
            "eval.max_length",
            f"set it to {model.positions} or less",
            value=config.max_length,
            why=f"{model.name} has learned positions for {model.positions} tokens",
        )
    return [LongBenchTask(config, task, config.folder, model, protocol) for task in select_tasks(config.tasks)]


@cache
def say_once(folder: Path, sentence: str) -> None:
    """Print a warning about the data in `folder` to stderr, once for all protocols."""
    print(sentence, file=sys.stderr)


@dataclass(frozen=True)
class LongBenchTask:
    """A LongBench task. Its samples are the rows of the task's file, and their ids are official row numbers."""

    config: LongBench
    task: Task
    folder: Path
    model: LoadedModel
    protocol: EvaluationProtocol

    @property
    def name(self) -> str:
        return self.task.name

    @cached_property
    def data(self) -> tuple[list[Row], str]:
        """The records of the task's file, and a hash of the bytes they were read from."""
        content = read_task(self.folder, self.task)
        return load_task(self.folder, self.task, self.config.limit, content), fingerprint(content)

    @cached_property
    def records(self) -> Mapping[str, Row]:
        records = {str(record.row): record for record in self.data[0]}
        if altered := [record for record in records.values() if record.problem]:
            first = f"row {altered[0].row}: {altered[0].problem}"
            say_once(self.folder, f"{self.name}: {len(altered)} of {len(records)} rows are not official ({first})")
        return records

    @property
    def sample_ids(self) -> Sequence[str]:
        return list(self.records)

    @property
    def window(self) -> int:
        """Maximum tokens of prompt and answer. Longer prompts are truncated in the middle."""
        return self.config.max_length or self.model.window

    @property
    def longest_released(self) -> int | None:
        """Maximum tokens of a templated prompt in the released code; None if window or `max_length` limit it."""
        longest = RELEASED_LONGEST.get(self.model.name.casefold())
        if self.protocol.longbench_truncation == "window" or longest is None:
            return None
        return longest if (self.config.max_length or longest) >= longest else None

    @cached_property
    def longest_prompt(self) -> int:
        """Number of tokens in the prompt of the record with the most characters."""
        return self.render(max(self.records.values(), key=lambda record: len(record.context + record.input))).tokens

    @property
    def max_new_tokens(self) -> int:
        return self.task.max_new_tokens

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        assert self.records  # loading them prints a warning about wrong rows
        released = {"longest": self.longest_released} if self.longest_released else {}
        return {
            "template": self.task.prompt,
            "window": self.window,
            **released,
            "chat_wrapper": self.chat_wrapper if self.task.chat_wrapper else None,
            "stop": self.task.stop,
            "data": self.data[1],
        }

    @property
    def chat_wrapper(self) -> ChatWrapper | None:
        """The protocol's chat wrapper; None if the model's chat template is turned off."""
        return self.protocol.chat_wrapper if self.model.chat_template else None

    def render(self, record: Row) -> Prompt:
        return render(
            self.task,
            record,
            self.model.tokenizer,
            window=self.window,
            chat_wrapper=self.chat_wrapper,
            chat_template_kwargs=self.model.chat_template_kwargs,
            longest=self.longest_released,
            cleanup=self.protocol.decode_cleanup,
            model=self.model.name,
        )

    def sample(self, id: str) -> Sample:
        record = self.records[id]
        prompt = self.render(record)
        stopping = Stopping(
            self.task.max_new_tokens,
            stop_ids(self.task, self.model.tokenizer, self.model.stop_ids),
            self.task.min_new_tokens,
            self.model.settings(self.protocol.generation_config),
        )

        def score(prediction: str) -> dict[str, Any]:
            """Return the score, 0 to 100, and `score_official` if the official recursion would fail."""
            result = score_sample(self.task, prediction, record.answers, record.all_classes)
            official = {"score_official": 100 * result.official} if result.overflow else {}
            return {"score": 100 * result.score, **official}

        details = {
            "prompt_tokens": prompt.tokens,
            "truncated": prompt.truncated,
            "prompt_text_sha256": prompt.sha256,
            "answers": list(record.answers),
            "length": record.length,
            "official": not record.problem,
            "all_classes": list(record.all_classes) if record.all_classes else None,
        }
        ids = torch.tensor(prompt.ids, device=self.model.device)
        return Sample(id, ids, stopping, score, details, record.answers[0], self._context(record, prompt))

    def _context(self, record: Row, prompt: Prompt) -> int:
        """Return the number of tokens before the part of the template that follows the context."""
        _, _, after = self.task.prompt.partition("{context}")
        question = after.format(input=record.input)
        return question_start(prompt.text, question, prompt.ids, self.model.tokenizer)
