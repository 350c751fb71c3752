"""The attention of single heads: what is written equals a naive forward, and a figure is redrawn from it alone."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from compresskv import models
from evals.attention.evaluation import chosen_heads, needle_span
from evals.progress import Progress
from evals.report.artefacts import write
from tests.support.jobs import job
from tests.support.refusals import refused

GRID = ["eval=attention", "method=full", "eval.lengths=[200]", "eval.max_new_tokens=3"]


@pytest.fixture
def results(checkpoint, calibration_file, tmp_path):
    """A results tree with one prompt of the tiny model."""
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"calibration={calibration_file}"]
    one = job(*GRID, *model, f"paths.results={tmp_path}")
    one.eval.run(models.load(one.model), [one, one], Progress())
    return tmp_path


def test_the_attention_is_that_of_a_naive_forward(results, checkpoint, default_model):
    (path,) = (results / "attention" / "tiny-llama").glob("*.json")
    written = json.loads(path.read_text())
    assert [head["kind"] for head in written["heads"]] == ["streaming", "traditional", "semantic"]
    ids = default_model.tokenizer.convert_tokens_to_ids(written["tokens"])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    by_step = []
    sequence, steps = list(ids), len(written["heads"][0]["by_step"]["needle"])
    with torch.no_grad():
        for _ in range(steps):
            out = model(torch.tensor([sequence]), output_attentions=True)
            by_step.append(torch.stack([layer[0, :, -1, : len(ids)] for layer in out.attentions]))
            sequence.append(int(out.logits[0, -1].argmax()))
    expected = torch.stack(by_step)
    first, last = written["parts"]["needle"]
    assert "sandwich" in default_model.tokenizer.decode(ids[first:last])
    for head in written["heads"]:
        of_head = expected[:, head["layer"], head["head"]]
        assert torch.allclose(torch.tensor(head["attention"]), of_head.mean(0), atol=2e-5)
        in_needle = of_head[:, first:last].sum(-1)
        assert torch.allclose(torch.tensor(head["by_step"]["needle"]), in_needle, atol=1e-4)


def test_the_figure_is_redrawn_without_a_model(results):
    paths = write("fig1_attention", results)
    assert {path.suffix for path in paths} == {".md", ".tex", ".csv", ".png", ".svg", ".pdf"}
    weights = pd.read_csv(next(path for path in paths if path.name == "attention.csv"))
    assert weights.groupby("kind")["position"].max().nunique() == 1
    shares = pd.read_csv(next(path for path in paths if path.name == "table.csv"))
    assert shares.groupby("method")["mean"].sum().round(1).tolist() == [100.0] * 3


def test_no_head_is_chosen_twice_and_streaming_heads_are_no_retrieval_heads():
    scores = {"traditional": ((0.9, 0.1), (0.2, 0.0)), "semantic": ((0.9, 0.8), (0.2, 0.0))}
    streaming = torch.tensor([[0.9, 0.1], [0.3, 0.2]])
    assert chosen_heads(streaming, scores, 1) == [
        ("streaming", (1, 0)),
        ("traditional", (0, 0)),
        ("semantic", (0, 1)),
    ]


def test_the_place_of_a_needle_is_that_of_its_tokens(default_model):
    tokenizer = default_model.tokenizer
    ids = torch.tensor(tokenizer("“Bees” work.\nHe eats a sandwich and sits.\nThe end").input_ids)
    span = needle_span(ids, "a sandwich and sits.", tokenizer)
    assert tokenizer.decode(ids[span.start : span.stop]).strip() == "a sandwich and sits."
    with refused("eval.answer", value="a pear"):
        needle_span(ids, "a pear", tokenizer)
