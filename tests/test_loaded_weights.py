"""A model in memory is known by its weights: names, paths and folders' names are not enough."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from compresskv import calibration, checkpoints, compressed, loaded_weights
from compresskv.loaded_weights import CHANGED, identity
from compresskv.methods import method_for
from compresskv.models import ModelConfig, load
from tests.support import tiny
from tests.support.gguf_files import model as gguf_model
from tests.support.gguf_files import write
from tests.support.jobs import job
from tests.support.refusals import refused

IDS = tiny.prompt(60, seed=1)[None]


def record(model, fingerprint, heads=1):
    config = model.config
    layers, q_heads = config.num_hidden_layers, config.num_attention_heads
    scores = [list(range(q_heads))] * layers
    return {
        "model": "checkpoint-500",
        "source": "held_out",
        "observation": {"window": 8, "kernel": 5, "pooling": "average"},
        "heads": heads,
        "layer_scores": [1 / layers] * layers,
        "head_scores": {"semantic": scores, "traditional": scores},
        "model_fingerprint": fingerprint,
    }


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two checkpoints whose folders share a name; `made` is where calibrations are."""
    other = tiny.FAMILIES["llama"]()
    tiny.save(tmp_path / "runA" / "checkpoint-500")
    tiny.save(tmp_path / "runB" / "checkpoint-500", other)
    made = tmp_path / "calibration"
    made.mkdir()
    monkeypatch.setattr(calibration, "folders", lambda: (made,))
    a, b = (tmp_path / run / "checkpoint-500" for run in ("runA", "runB"))
    return SimpleNamespace(a=a, b=b, made=made)


def opened(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def test_a_calibration_of_the_other_checkpoint_of_that_name_is_refused(runs):
    a, b = opened(runs.a), opened(runs.b)
    print_a, print_b = (checkpoints.fingerprint(str(folder), None) for folder in (runs.a, runs.b))
    file = runs.made / "checkpoint-500.held_out.json"
    file.write_text(json.dumps(record(a, print_a)))
    for_a = method_for(a, "compresskv")
    assert for_a is not None
    for given in (None, "held_out", file, calibration.load(file)):
        with refused("calibration"), compressed(b, "compresskv", 20, given):
            pass
    (runs.made / "another-name.held_out.json").write_text(json.dumps(record(b, print_b, heads=2)))
    with compressed(b, "compresskv", budget=20) as cache, torch.no_grad():
        b(input_ids=IDS, past_key_values=cache)
    assert method_for(b, "compresskv") != for_a
    file.write_text("broken")  # a stranger's file is no matter of this model
    assert method_for(b, "compresskv") is not None


def test_a_method_that_needs_no_calibration_asks_for_no_weights(runs, monkeypatch):
    monkeypatch.setattr(loaded_weights, "identity", lambda model: pytest.fail("files are being read"))
    assert method_for(opened(runs.a), "snapkv") is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_fingerprint_is_that_of_run_py_in_every_dtype(runs, dtype):
    expected = load(ModelConfig("x", path=str(runs.a), device="cpu", dtype="float32")).fingerprint
    assert identity(opened(runs.a, dtype=dtype)) == ("checkpoint-500", expected)


def trained(model):
    model.model.layers[3].self_attn.o_proj.weight[:, 5] += 0.5


def other_layers(model):
    model.model.layers[0], model.model.layers[1] = model.model.layers[1], model.model.layers[0]


def wrapped(model):
    """As adapters do that are not merged."""
    layer = torch.nn.Module()
    layer.base_layer, layer.lora_A = model.model.layers[0].self_attn.q_proj, torch.nn.Linear(96, 2)
    model.model.layers[0].self_attn.q_proj = layer


@pytest.mark.parametrize(
    "change",
    [
        trained,
        other_layers,
        wrapped,
        lambda model: model.model.embed_tokens.weight.mul_(2),
        lambda model: model.model.norm.weight.add_(1),
        lambda model: model.resize_token_embeddings(100),
        lambda model: model.load_state_dict(tiny.FAMILIES["llama"]().state_dict()),
    ],
)
def test_a_model_that_was_changed_in_memory_is_another(runs, change):
    model = opened(runs.a)
    print_a = checkpoints.fingerprint(str(runs.a), None)
    (runs.made / "checkpoint-500.held_out.json").write_text(json.dumps(record(model, print_a)))
    assert identity(model)[1] == print_a
    with torch.no_grad():
        change(model)
    assert identity(model)[1] == CHANGED
    with refused("calibration"):
        method_for(model, "compresskv")


def test_a_model_without_files_takes_no_calibration_by_its_name_alone(runs):
    model = opened(runs.a)
    file = runs.made / "checkpoint-500.held_out.json"
    file.write_text(json.dumps(record(model, "abc")))
    for weights in runs.a.glob("*.safetensors"):
        weights.unlink()
    assert identity(model) == ("checkpoint-500", None)
    with refused("calibration"):
        method_for(model, "compresskv")
    assert method_for(model, "compresskv", file) is not None  # the user's word


SIZE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 96}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=6, vocab_size=96)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, intermediate_size=64)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZE, intermediate_size=64, num_key_value_heads=2, num_local_experts=4)
    ),
}


@pytest.mark.parametrize("family", [*OTHERS, *tiny.FAMILIES])
@pytest.mark.parametrize("without_head", [False, True])
def test_every_family_is_recognised_and_every_change_seen(tmp_path, family, without_head):
    """Whatever names its files have: fused experts are saved apart, and a model may be saved without its head."""
    model = (OTHERS | tiny.FAMILIES)[family]()
    if without_head:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.get_decoder().save_pretrained(tmp_path / "saved")
    else:
        model.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    again = opened(tmp_path / "saved", dtype=torch.bfloat16)
    assert identity(again)[1] == checkpoints.fingerprint(str(tmp_path / "saved"), None)
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            before = parameter.clone()
            parameter[-1] += 1
            assert identity(again)[1] == CHANGED, name
            parameter.copy_(before)
    assert identity(again)[1] != CHANGED


def test_a_commit_of_the_hub_s_cache_is_found_by_its_weights(tmp_path, monkeypatch):
    home = tmp_path / "hub" / "models--org--tiny"
    made = {commit: tiny.FAMILIES["llama"]() for commit in ("a" * 40, "b" * 40)}
    for commit, model in made.items():
        tiny.save(home / "snapshots" / commit, model)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    prints = set()
    for commit, model in made.items():
        model.name_or_path = "org/tiny"
        assert identity(model) == ("tiny", checkpoints.fingerprint("org/tiny", commit))
        prints.add(identity(model)[1])
    assert len(prints) == 2


def test_a_folder_of_the_hub_s_cache_has_the_name_of_its_id(tmp_path, monkeypatch):
    """So that calibrations without a fingerprint, as the published ones are, are found by it."""
    folder = tmp_path / "models--org--Tiny-Chat" / "snapshots" / ("a" * 40)
    tiny.save(folder)
    made = tmp_path / "calibration"
    made.mkdir()
    monkeypatch.setattr(calibration, "folders", lambda: (made,))
    model = opened(folder)
    assert identity(model) == ("Tiny-Chat", checkpoints.fingerprint(str(folder), None))
    published = record(model, None) | {"model": "tiny-chat", "source": "published"}
    (made / "tiny-chat.published.json").write_text(json.dumps(published))
    assert method_for(model, "compresskv", "published") is not None
    assert job(f"model.path={folder}").model.name == "Tiny-Chat"


def test_a_model_that_was_loaded_from_a_gguf_file_is_that_file(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    file = write(tmp_path / "folder" / "some[1].Q8.gguf", "llama", gguf_model("llama"))
    model = opened(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    assert identity(model) == ("some[1].Q8", None)
    expected = load(ModelConfig("x", path=str(file), device="cpu", dtype="float32", chat_template=False)).fingerprint
    assert identity(model) == ("some[1].Q8", expected)
    write(tmp_path / "folder" / "other.gguf", "llama", gguf_model("llama"))
    assert identity(model) == ("some[1].Q8", expected)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert identity(model)[1] == CHANGED
