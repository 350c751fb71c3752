"""Samples are those that RULER's own generators gave for the default model's tokenizer, byte for byte."""

import json
from itertools import islice

import pytest

from evals.ruler.__main__ import main
from evals.ruler.samples import samples
from evals.ruler.tasks import TASKS

GIVEN = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")


@pytest.fixture
def golden(shared):
    folder = shared / "golden" / "ruler"
    if not folder.is_dir():
        pytest.skip("no golden/ruler in the shared data")
    return folder


@pytest.mark.parametrize("length", [1024, 2048, 4096])
@pytest.mark.parametrize("name", GIVEN)
def test_lines_are_those_of_rulers_own_files(name, length, golden, default_model):
    wanted = (golden / str(length) / f"{name}.jsonl").read_text()
    made = islice(samples(TASKS[name], default_model.tokenizer, length, seed=42), wanted.count("\n"))
    assert "".join(json.dumps(sample.line) + "\n" for sample in made) == wanted


def test_the_command_prints_them(golden, capsys):
    main(["--task", "fwe", "--length", "2048", "--seed", "42", "--samples", "4", "--model", "smollm2-135m"])
    assert capsys.readouterr().out == (golden / "2048" / "fwe.jsonl").read_text()
