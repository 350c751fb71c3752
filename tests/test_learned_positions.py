"""Learned positions end, and so do windows."""

import pytest
import torch

from compresskv.models import ModelConfig, load
from compresskv.probe import learned_positions
from tests.support.jobs import job
from tests.support.refusals import refused
from tests.test_probe import made


@pytest.mark.parametrize(("architecture", "lost"), [("GPT2", 0), ("OPT", 0), ("BioGpt", 0), ("GPTBigCode", 0)])
def test_as_many_tokens_have_a_position_as_a_forward_takes(architecture, lost):
    model = made(architecture, max_position_embeddings=40)
    positions = learned_positions(model)
    assert positions == 40 - lost
    model(torch.ones(1, positions, dtype=torch.int64))
    with pytest.raises(IndexError):
        model(torch.ones(1, positions + 1, dtype=torch.int64))


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3Text", "Phi3", "GPTNeoX"])
def test_rope_has_a_position_for_any_number_of_tokens(architecture):
    assert learned_positions(made(architecture)) is None


def test_a_longer_window_is_refused_before_any_prompt(default_model, tmp_path):
    made("GPT2", max_position_embeddings=40, vocab_size=49152).save_pretrained(tmp_path)
    default_model.tokenizer.save_pretrained(tmp_path)
    options = {"path": str(tmp_path), "device": "cpu", "dtype": "float32"}
    with refused("model.window", value=41):
        load(ModelConfig("gpt2", window=41, **options))
    assert load(ModelConfig("gpt2", window=40, **options)).window == 40
    model = load(ModelConfig("gpt2", **options))
    assert model.window == 40
    longbench = job("eval=longbench", "model=smollm2-135m", "eval.max_length=41").eval
    with refused("eval.max_length", value=41):
        longbench.make_tasks(model, None)
