"""A model in memory is known by its weights: names, paths, file formats and folders' names are not enough."""

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

from compresskv import calibration, compressed, loaded_weights
from compresskv.calibration import same
from compresskv.loaded_weights import fingerprints
from compresskv.methods import method_for
from compresskv.models import ModelConfig, load
from evals.running.methods import build_method
from tests.support import calibrations, tiny
from tests.support.gguf_files import model as gguf_model
from tests.support.gguf_files import write
from tests.support.jobs import job
from tests.support.refusals import refused

IDS = tiny.prompt(60, seed=1)[None]


def record(model, /, best=0, **fields):
    layers, q_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    scores = [[int(head == best) for head in range(q_heads)]] * layers
    whole = {"model": "checkpoint-500", "head_scores": {"semantic": scores, "traditional": scores}}
    return calibrations.record(layers, q_heads, **{**whole, "weights": fingerprints(model), **fields})


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
    file = runs.made / "checkpoint-500.held_out.json"
    file.write_text(json.dumps(record(a)))
    for_a = method_for(a, "compresskv")
    assert for_a is not None
    for given in (None, "held_out", file, calibration.load(file)):
        with refused("calibration"), compressed(b, "compresskv", 20, given):
            pass
    (runs.made / "another-name.held_out.json").write_text(json.dumps(record(b, best=2)))
    with compressed(b, "compresskv", budget=20) as cache, torch.no_grad():
        b(input_ids=IDS, past_key_values=cache)
    assert method_for(b, "compresskv") != for_a
    file.write_text("broken")  # the file of another model does not matter
    assert method_for(b, "compresskv") is not None


def test_a_method_that_needs_no_calibration_asks_for_no_weights(runs, monkeypatch):
    monkeypatch.setattr(loaded_weights, "fingerprints", lambda model: pytest.fail("weights are being read"))
    assert method_for(opened(runs.a), "snapkv") is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_the_same_in_every_dtype(runs, dtype):
    of_run = load(ModelConfig("x", path=str(runs.a), device="cpu", dtype="float32")).weights
    assert same(of_run, fingerprints(opened(runs.a, dtype=dtype)))
    assert not same(of_run, fingerprints(opened(runs.b, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_copy_in_another_dtype_or_format_takes_the_same_calibration(runs, tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "some.gguf", "llama", gguf_model("llama"))
    of_gguf = load(ModelConfig("x", path=str(file), device="cpu", dtype="float32", chat_template=False))
    (runs.made / "some.held_out.json").write_text(json.dumps(record(of_gguf.model)))
    of_gguf.model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "copy")
    assert method_for(opened(tmp_path / "copy", dtype="auto"), "compresskv") is not None


def test_a_run_finds_the_calibration_of_its_weights_under_another_name(runs, tmp_path):
    (runs.made / "another-name.held_out.json").write_text(json.dumps(record(opened(runs.b), best=2)))
    options = ("model.chat_template=false", "model.device=cpu", "budget=40")
    of_a, of_b = (job(f"model.path={folder}", "model.dtype=float32", *options) for folder in (runs.a, runs.b))
    assert build_method(load(of_b.model), of_b) is not None
    with refused("calibration"):
        build_method(load(of_a.model), of_a)
    given = f"calibration={runs.made / 'another-name.held_out.json'}"
    of_a = job(f"model.path={runs.a}", "model.dtype=float32", *options, given)
    with refused("calibration"):
        build_method(load(of_a.model), of_a)
    unchecked = job(f"model.path={runs.a}", "model.dtype=float32", *options, given, "calibration_check=off")
    assert build_method(load(of_a.model), unchecked) is not None
    with refused("calibration_check", value="no"):
        job("calibration_check=no")


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
    (runs.made / "checkpoint-500.held_out.json").write_text(json.dumps(record(model)))
    assert method_for(model, "compresskv") is not None
    with torch.no_grad():
        change(model)
    with refused("calibration"):
        method_for(model, "compresskv")


def test_a_name_alone_matches_no_file_that_names_other_files(runs):
    """As files of older versions do, which have the fingerprint of the files and not of the weights."""
    model = opened(runs.a)
    file = runs.made / "checkpoint-500.held_out.json"
    file.write_text(json.dumps(record(model, weights={}, model_fingerprint="abc")))
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
    """Fused experts are saved separately, and a model may be saved without its head."""
    model = (OTHERS | tiny.FAMILIES)[family]()
    if without_head:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.get_decoder().save_pretrained(tmp_path / "saved")
    else:
        model.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    again = opened(tmp_path / "saved", dtype=torch.bfloat16)
    expected = fingerprints(model)
    assert same(fingerprints(again), expected)
    with torch.no_grad():
        for name, parameter in again.base_model.named_parameters():
            before = parameter.clone()
            parameter[-1] += 1
            assert not same(fingerprints(again), expected), name
            parameter.copy_(before)
    assert same(fingerprints(again), expected)


def test_every_row_and_column_of_a_large_matrix_counts():
    model = tiny.FAMILIES["llama"]()
    weight = torch.nn.Parameter(torch.randn(1024, 768))
    model.model.layers[0].self_attn.q_proj.weight = weight
    expected = fingerprints(model)
    with torch.no_grad():
        for part in [weight[row] for row in range(0, 1024, 97)] + [weight[:, column] for column in range(0, 768, 97)]:
            part += 1
            assert not same(fingerprints(model), expected)
            part -= 1


def test_a_folder_of_the_hub_s_cache_has_the_name_of_its_id(tmp_path, monkeypatch):
    """So that calibrations without a fingerprint, as the published ones are, are found by it."""
    folder = tmp_path / "models--org--Tiny-Chat" / "snapshots" / ("a" * 40)
    tiny.save(folder)
    made = tmp_path / "calibration"
    made.mkdir()
    monkeypatch.setattr(calibration, "folders", lambda: (made,))
    model = opened(folder)
    assert loaded_weights.name(model) == "Tiny-Chat"
    published = record(model, model="tiny-chat", source="published", weights={})
    (made / "tiny-chat.published.json").write_text(json.dumps(published))
    assert method_for(model, "compresskv", "published") is not None
    assert job(f"model.path={folder}").model.name == "Tiny-Chat"


def test_a_model_that_was_loaded_from_a_gguf_file_has_its_name(tmp_path):
    (tmp_path / "folder").mkdir()
    file = write(tmp_path / "folder" / "some[1].Q8.gguf", "llama", gguf_model("llama"))
    model = opened(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    assert loaded_weights.name(model) == "some[1].Q8"


def test_weights_in_buffers_count():
    """As quantised layers have them."""
    model = tiny.FAMILIES["llama"]()
    layer = model.model.layers[0].self_attn.q_proj
    layer.register_buffer("qweight", torch.arange(12, dtype=torch.int32))
    before = fingerprints(model)
    layer.qweight[3] += 1
    assert not same(before, fingerprints(model))
