"""The long end for real: a cell of 128K tokens, prefilled in chunks, on a tiny random model with that window."""

import pytest
import torch

from compresskv.engine.attention import attached
from compresskv.engine.generation import generate
from compresskv.engine.live_bytes import LiveBytesMode
from compresskv.engine.setting import FULL, Setting
from compresskv.models import load
from evals.running.batches import sample_line
from evals.running.forecast import forecast
from evals.running.methods import build_method
from tests.support.jobs import job

LENGTH, CHUNK, BUDGET, ROOM = 128_000, 512, 256, 4


@pytest.fixture(scope="module")
def checkpoint_128k(tmp_path_factory, default_model):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("hub") / "tiny-128k"
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    window = {"max_position_embeddings": 131_072, "rope_theta": 500_000.0}
    config = LlamaConfig(**size, **window, num_key_value_heads=1, vocab_size=49152, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    default_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_cell_of_128k_tokens(checkpoint_128k):
    """The needle is at its depth, the peak within the forecast, and what is kept exactly the budget."""
    asked = job(
        f"model.path={checkpoint_128k}",
        "model.dtype=float32",
        "model.device=cpu",
        "method=snapkv",
        f"budget={BUDGET}",
        f"prefill_chunk={CHUNK}",
        f"eval.lengths=[{LENGTH}]",
        "eval.depths=[50]",
        f"eval.max_new_tokens={ROOM}",
    )
    model = load(asked.model)
    assert model.window == 131_072
    [task] = asked.eval.make_tasks(model, asked.protocol)
    sample = task.sample(f"L{LENGTH}-D50-N0")
    assert LENGTH - 200 < sample.ids.numel() <= LENGTH
    before, needle, after = model.tokenizer.decode(sample.ids).partition(task.needles[0].needle)
    assert needle
    tokens = [len(model.tokenizer(text, add_special_tokens=False).input_ids) for text in (before, after)]
    assert 0.48 < tokens[0] / sum(tokens) < 0.52

    settings = [Setting(build_method(model, asked), BUDGET), FULL]
    expected = forecast(model.model, settings, LENGTH, ROOM, CHUNK)
    held = [*model.model.parameters(), *model.model.buffers()]
    with attached(model.model, model.backend), LiveBytesMode(held) as mode:
        generations = generate(model.model, sample.ids, settings, sample.stopping, chunk=CHUNK)
    assert 0.8 < mode.live.peak / (expected.peak - expected.used) < 1.05
    snapkv, full = (sample_line(model, sample, generation) for generation in generations)
    assert snapkv["kept"] == [BUDGET] * 2
    assert full["kept"] == [sample.ids.numel()] * 2
    for line in (snapkv, full):
        assert 1 <= line["new_tokens"] <= ROOM
        assert abs(line["actual_depth"] - 50) <= 2
        assert not line["misplaced"]
        assert not line["truncated"]
