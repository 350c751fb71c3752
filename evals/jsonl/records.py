"""Read the records of a custom task: one JSON object per line, with prompt, answers and metric.

    {"id": "kv-0", "context": "…", "question": "…", "answers": ["…"], "metric": "exact_match", "max_new_tokens": 8}

| field | |
|---|---|
| `prompt`, or `context` and `question` | the text; context and question are joined by a blank line |
| `answers` | a list of reference answers, at least one |
| `metric` | a name in `METRICS`; may be set for the whole file instead |
| `max_new_tokens` | maximum tokens of the answer; may be set for the whole file instead |
| `id` | unique text or number; default: the number of the record, from 0 |
| `answer_prefix` | first words of the answer, part of the prompt; optional |
| `all_classes` | the class names, for `metric: classification` |

RULER's files can be used unchanged: in records without `prompt` and `answers`, `input` is the prompt and `outputs` are
the answers. Other fields are ignored, unless their names look like misspelled names of this table.

A metric must distinguish each reference answer from an empty answer: only the reference answer may get the full score.
"""

import string
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from compresskv.checking import AfterValidator, BeforeValidator, Ge, Le
from compresskv.errors import UserError, located
from compresskv.inputs import read_once
from evals.json_lines import Answers, Classes, checked_record, field_of, read_jsonl
from evals.metrics.answers import METRICS
from evals.metrics.longbench import FULL_WIDTH_PUNCTUATION
from evals.metrics.rouge1 import sees

FIELDS = ("prompt", "context", "question", "answers", "metric", "max_new_tokens", "id", "answer_prefix", "all_classes")
OF_RULER = {"prompt": "input", "answers": "outputs"}
"""RULER's names (arXiv 2404.06654) for these fields."""

JOINED = "\n\n"
"""Separator between context and question."""

LONGEST_ID = 100

FULL_MARKS = 1 - 1e-6
"""A score of at least this value is a full score: LongBench's ROUGE-L is slightly below 1 even for equal texts."""

EMPTY = ("", " ", f" {string.punctuation}{FULL_WIDTH_PUNCTUATION}\n")
"""Predictions without content."""


def _identifier(value: Any) -> str:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text.strip() or len(text) > LONGEST_ID or not text.isprintable():
        raise UserError(None, f"choose a number, or a text of one line and at most {LONGEST_ID} characters")
    return text


def _known(name: str) -> str:
    if name not in METRICS:
        raise UserError(None, f"choose one of {', '.join(METRICS)}")
    return name


Identifier = Annotated[str, BeforeValidator(_identifier)]
MetricName = Annotated[str, AfterValidator(_known)]
NewTokens = Annotated[int, Ge(1), Le(100_000)]


@dataclass(frozen=True)
class JsonlRecord:
    """One sample of a custom task. `prompt` is the text before any chat template.

    `question`: the part of the prompt after the context; "" if the record does not separate the two.
    """

    id: Identifier
    prompt: str
    answers: Answers
    metric: MetricName
    max_new_tokens: NewTokens
    answer_prefix: str = ""
    all_classes: Classes = None
    question: str = ""

    def score(self, prediction: str) -> float:
        """Score a prediction, 0 to 1."""
        return METRICS[self.metric](prediction, self.answers, self.all_classes)


def read_records(
    path: Path, metric: str | None = None, max_new_tokens: int | None = None, content: bytes | None = None
) -> list[JsonlRecord]:
    """Read the records of a file, in order. `metric` and `max_new_tokens`: defaults for lines that do not set them.

    `content`: the file's bytes if already read.
    """
    records: dict[str, JsonlRecord] = {}
    content = read_once(path, "eval.data") if content is None else content
    for number, (place, given) in enumerate(read_jsonl(path, content)):
        usual = {"id": number, "metric": metric, "max_new_tokens": max_new_tokens}
        set_by_file = {name: value for name, value in usual.items() if value is not None}
        record = _record(place, set_by_file | _in_our_words(given))
        if record.id in records:
            raise UserError(
                "id", "give each record a different id", value=record.id, why="it occurs twice", where=place
            )
        records[record.id] = record
    return list(records.values())


def _in_our_words(fields: dict[str, Any]) -> dict[str, Any]:
    """Rename RULER's fields in a record that does not have the corresponding field of this format."""
    lacking = {"answers"} - fields.keys()
    if not {"prompt", "context", "question"} & fields.keys():
        lacking.add("prompt")
    return fields | {ours: fields[theirs] for ours, theirs in OF_RULER.items() if ours in lacking and theirs in fields}


def _record(place: str, fields: dict[str, Any]) -> JsonlRecord:
    for name in fields.keys() - set(FIELDS):
        if near := get_close_matches(name, FIELDS, n=1, cutoff=0.85):
            raise UserError(name, f"did you mean {near[0]}?", why="no such field", where=place)
    for name in ("metric", "max_new_tokens"):
        if name not in fields:
            raise UserError(name, f"set it in the record, or set eval.{name} for all", why="not set", where=place)
    whole = {"question": "", **fields, "prompt": _prompt(place, fields)}
    record = checked_record(place, JsonlRecord, whole, needs_classes=fields["metric"] == "classification")
    with located(place):
        for answer in record.answers:
            _refuse_unscorable(record, answer)
    return record


def _refuse_unscorable(record: JsonlRecord, answer: str) -> None:
    """Raise `UserError` if the reference answer itself does not get the full score, or if an empty prediction does."""
    alone, advice = replace(record, answers=(answer,)), ADVICE.get(record.metric, "choose another metric")
    if not answer.strip():
        raise UserError("answers", "give an answer, or leave the record out", value=answer, why="blank")
    if alone.score(answer) < FULL_MARKS or (record.metric == "rouge1_recall" and not sees(answer)):
        raise UserError(
            "answers", advice, value=answer, why=f"with metric={record.metric}, this answer does not get the full score"
        )
    if max(map(alone.score, EMPTY)) >= FULL_MARKS:
        raise UserError(
            "answers", advice, value=answer, why=f"with metric={record.metric}, an empty prediction gets the full score"
        )


def _prompt(place: str, fields: dict[str, Any]) -> str:
    parts: list[str] = [name for name in ("context", "question") if name in fields]
    if ("prompt" in fields) == bool(parts) or len(parts) == 1:
        given = ", ".join(repr(name) for name in ("prompt", *parts) if name in fields) or "neither"
        raise UserError(
            "prompt", "give either prompt, or context and question", why=f"the record has {given}", where=place
        )
    prompt = JOINED.join(field_of(place, fields, name, str) for name in parts or ["prompt"])
    if not prompt.strip():
        raise UserError(parts[0] if parts else "prompt", "give some text", why="empty", where=place)
    return prompt


ADVICE = {
    "qa_f1": "this metric drops punctuation and the words a, an, the: choose exact_match",
    "qa_f1_zh": "this metric drops punctuation: choose exact_match",
    "rouge_l": "this metric drops full stops: choose exact_match",
    "rouge_l_zh": "this metric drops full stops: choose exact_match",
    "rouge1_recall": "this metric reads only a to z and digits: choose qa_f1, qa_f1_zh or string_match_part",
    "classification": "list it in all_classes, and remove classes that are a part of it, or choose exact_match",
    "count": "write one whole number in digits, or choose exact_match",
    "retrieval": "name one paragraph, as in 'Paragraph 3'",
    "retrieval_zh": "name one paragraph, as in '段落3'",
    "code_similarity": "give one line of code without `, # and //, or choose rouge_l or exact_match",
    "string_match_all": "give more than punctuation, or choose exact_match",
    "string_match_part": "give more than punctuation, or choose exact_match",
}
"""Advice, by metric, for a reference answer that the metric cannot score."""
