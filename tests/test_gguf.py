"""GGUF files: every key and tensor is honoured, harmless or refused by name."""

import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compresskv import checkpoints
from compresskv.errors import UserError
from tests.support.gguf_files import BOS, EOS, EOT, FAMILIES, SENTENCEPIECE, SIZE, TOKENS, like, model, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))


def loaded(path) -> PreTrainedModel:
    folder, _ = checkpoints.from_gguf([path], None)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def logits(made: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(0, SIZE["vocab_size"], (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return made(ids).logits


def assert_equal(made: PreTrainedModel, expected: PreTrainedModel) -> None:
    ours, theirs = logits(made), logits(expected)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.std(), ((ours - theirs).abs().max(), theirs.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_the_model_that_it_was_written_from(tmp_path, family):
    made = model(family)
    assert_equal(loaded(write(tmp_path / "m.gguf", family, made)), made)
