"""Question answering: the documents of a question among other documents, from SQuAD or HotpotQA.

It makes the same random calls as scripts/data/synthetic/qa.py of NVIDIA/RULER c3f5e3b.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from compresskv.errors import UserError
from compresskv.inputs import fingerprint, read_once
from evals.ruler.drawing import Drawn, Request, Text, all_fitting, filled, most_units

FILES = {"squad": "squad.json", "hotpotqa": "hotpotqa.json"}
"""Files that RULER's download_qa_dataset.sh writes: SQuAD's dev-v2.0.json, and hotpot_dev_distractor_v1.json."""

STEP = 10


@dataclass(frozen=True)
class Question:
    """A question and its answers.

    `context`: numbers of the documents that have the answers. `more`: numbers of other documents of the same article.
    """

    query: str
    outputs: list[str]
    context: list[int]
    more: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of a file, all its documents, and a hash of the bytes they were read from."""

    questions: list[Question]
    documents: list[str]
    fingerprint: str


def generate(request: Request, dataset: Literal["squad", "hotpotqa"]) -> Iterator[Drawn]:
    """Yield one sample for each question of the file, in order. Raises `UserError` after the last one."""
    assert request.folder is not None
    asked = read(request.folder / FILES[dataset])
    random = Random(request.seed)

    def text(index: int, count: int) -> Text:
        return _text(request, asked, random, asked.questions[index], count)

    count = most_units(request, STEP, partial(text, 0))
    yield from islice(all_fitting(request, count, STEP, text), len(asked.questions))
    raise UserError("eval.samples", f"choose at most {len(asked.questions)}", why=f"{FILES[dataset]} has too few")


def _text(request: Request, asked: Questions, random: Random, question: Question, count: int) -> Text:
    """Return a prompt with `count` documents."""
    documents = asked.documents
    if count < len(documents):
        own, more = question.context, question.more
        if count - len(own) > len(more):
            known = {*own, *more}
            others = [number for number in range(len(documents)) if number not in known]
            chosen = own + more + random.sample(others, max(0, count - len(own) - len(more)))
        else:
            chosen = own + random.sample(more, count - len(own))
        shown = [documents[number] for number in chosen]
    else:
        shown = (documents * -(-count // len(documents)))[:count]
    Random(request.seed).shuffle(shown)
    context = "\n\n".join(f"Document {number}:\n{document}" for number, document in enumerate(shown, 1))
    return filled(request.wording, context, question.outputs, query=question.query)


@cache
def read(path: Path) -> Questions:
    """Read the questions of a file. Raises `UserError` if it is not a SQuAD or HotpotQA file."""
    content = read_once(path, "eval.qa")
    try:
        data = json.loads(content)
        questions, documents = (_squad if path.name == FILES["squad"] else _hotpotqa)(data)
        if not questions or not all(question.outputs for question in questions):
            raise ValueError("it has no questions, or a question without an answer")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise UserError("eval.qa", "download it again", value=path, why=f"RULER cannot read it ({reason})") from error
    return Questions(questions, documents, fingerprint(content))


def _squad(content: dict[str, Any]) -> tuple[list[Question], list[str]]:
    articles = [article["paragraphs"] for article in content["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    numbers = {document: number for number, document in enumerate(documents)}
    questions = []
    for article in articles:
        whole = [numbers[paragraph["context"]] for paragraph in article]
        for paragraph in article:
            own = numbers[paragraph["context"]]
            more = [number for number in whole if number != own]
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = [answer["text"] for answer in asked["answers"]]
                    questions.append(Question(asked["question"], answers, [own], more))
    return questions, documents


def _hotpotqa(content: list[dict[str, Any]]) -> tuple[list[Question], list[str]]:
    of_rows = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in content]
    documents = sorted({document for of_row in of_rows for document in of_row})
    numbers = {document: number for number, document in enumerate(documents)}
    questions = [
        Question(row["question"], [row["answer"]], [numbers[document] for document in of_row])
        for row, of_row in zip(content, of_rows, strict=True)
    ]
    return questions, documents
