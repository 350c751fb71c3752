"""Whole runs, in this process, of models that are not plain: some layers slide, or a weight is infinite."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from evals.running.sweep import run
from tests.support.jobs import job
from tests.support.refusals import refused

GRID = ["eval.lengths=[200]", "eval.depths=1", "eval.max_new_tokens=2", "model.dtype=float32", "model.device=cpu"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, default_model):
    """A function that saves a tiny model with sliding windows of 24 tokens, and returns its directory."""

    def save(name, model, config, **settings):
        folder = tmp_path_factory.mktemp("hub") / name
        torch.manual_seed(0)
        size = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2}
        model(config(**size, **settings, sliding_window=24, vocab_size=49152, eos_token_id=2)).save_pretrained(folder)
        default_model.tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def hybrid(saved):
    """One of three layers slides."""
    layers = {"num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 2}
    return saved("tiny-hybrid", Qwen2ForCausalLM, Qwen2Config, **layers)


@pytest.fixture(scope="module")
def sliding(saved):
    """All layers slide."""
    return saved("tiny-sliding", MistralForCausalLM, MistralConfig, num_hidden_layers=2)


def test_a_hybrid_model_gives_both_sums_of_its_cache(hybrid, tmp_path, capsys):
    run([job(*GRID, f"model.path={hybrid}", f"paths.results={tmp_path}", "method=snapkv", "budget=64")])
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    (line,) = (json.loads(path.read_text()) for path in tmp_path.rglob("samples.jsonl"))
    bytes_per_token = 2 * 2 * 8 * 4  # keys and values, KV heads, head_dim, float32
    assert line["cache_bytes"] == 2 * 64 * bytes_per_token
    assert line["total_cache_bytes"] - line["cache_bytes"] >= 23 * bytes_per_token
    assert summary["total_cache_bytes"] == line["total_cache_bytes"]
    printed = capsys.readouterr()
    assert "2 of 3 layers evict" in printed.out + printed.err
    assert "with sliding layers" in printed.out
    assert f"{line['total_cache_bytes'] / 1e6:.2f}" in printed.out


def test_a_model_without_layers_that_evict_runs_with_the_full_cache(sliding, tmp_path):
    given = [f"model.path={sliding}", f"paths.results={tmp_path}", "method=full"]
    run([job(*GRID, *given)])
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    (line,) = (json.loads(path.read_text()) for path in tmp_path.rglob("samples.jsonl"))
    assert (line["kept"], line["realised_budget"], line["compressed"]) == ([], 0, False)
    assert summary["uncompressed"] == 1
    small = ["eval.lengths=[200]", "eval.new_tokens=4", "eval.rounds=1", "eval.pools=[]"]
    run([job("eval=efficiency", *small, *given, *GRID[3:])])
    (record,) = (json.loads(path.read_text()) for path in tmp_path.rglob("efficiency.json"))
    assert [row["realised_budget"] for row in record["rows"]] == [0]


def test_an_infinite_weight_is_no_result(checkpoint, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for method in ("full", "snapkv"):
        with refused(None):
            run([job(*GRID, f"model.path={folder}", f"paths.results={tmp_path}", f"method={method}", "budget=64")])
    for path in tmp_path.rglob("samples.jsonl"):
        (line,) = map(json.loads, path.read_text().splitlines())
        assert line["error"].startswith("model.dtype=")
        assert "prediction" not in line
    assert not list(tmp_path.rglob("summary.json"))


def test_a_login_is_asked_for_before_the_model_is_loaded(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb.api, "_api_key", None, raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with refused("logger", value="wandb"):
        run([job("logger=wandb", "model.path=/nowhere", "model.name=none", f"paths.results={tmp_path}")])
