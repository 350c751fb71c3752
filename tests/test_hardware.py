"""Which device, dtype and kernel are chosen: the table of what is asked, what the card can do and what is installed."""

import json
import re
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compresskv import flash as flash_attention
from compresskv import hardware
from compresskv.model_config import ModelConfig
from tests.support.command import ROOT
from tests.support.flash_attention import varlen_attn
from tests.support.refusals import refused

VOLTA, TURING, AMPERE, HOPPER = (7, 0), (7, 5), (8, 0), (9, 0)
CPU: list[tuple[int, int]] = []


@pytest.fixture
def machine(monkeypatch):
    """A machine with CUDA devices of these capabilities, with or without flash-attn, with or without fast bfloat16.

    `flash`: what importing flash-attn gives or raises; False where the distribution is not installed. `varlen`: whether
    torch's `varlen_attn` takes the lengths of rows.
    """

    def make(*capabilities, flash=True, varlen=False, bf16_cpu=False):
        def version(name):
            if flash is False:
                raise PackageNotFoundError(name)
            return "2.8.3"

        def load(name):
            if name != "flash_attn":
                return SimpleNamespace(varlen_attn=varlen_attn if varlen else lambda query, key, value: None)
            if isinstance(flash, Exception):
                raise flash
            return SimpleNamespace(flash_attn_with_kvcache=None) if flash is True else flash

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # it counts emulation
        index = lambda device: (torch.device(device).index or 0) if not isinstance(device, int) else device  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capabilities[index(device)])
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16_cpu})
        monkeypatch.setattr(flash_attention, "version", version)
        for module in (hardware, flash_attention):
            monkeypatch.setattr(module, "import_module", load)

    return make


def chosen(**asked):
    found = hardware.choose(ModelConfig("m", path="p", **asked))
    return found.device, str(found.dtype).removeprefix("torch."), found.backend


FA2 = "flash_attention_2"
WITH, ALONE, VARLEN = {}, {"flash": False}, {"varlen": True}
TABLE = [
    # capabilities, what is installed, asked, then device, dtype, backend
    (CPU, WITH, {}, ("cpu", "float32", "sdpa")),
    (CPU, {"bf16_cpu": True}, {}, ("cpu", "bfloat16", "sdpa")),
    (CPU, WITH, {"dtype": "bfloat16"}, ("cpu", "bfloat16", "sdpa")),
    (CPU, WITH, {"device": "map"}, ("map", "float32", "sdpa")),
    (CPU, VARLEN, {}, ("cpu", "float32", "sdpa")),
    ([VOLTA], VARLEN, {}, ("cuda", "float16", "sdpa")),
    ([TURING], WITH, {}, ("cuda", "float16", "sdpa")),
    ([TURING], WITH, {"dtype": "bfloat16"}, ("cuda", "bfloat16", "sdpa")),
    ([AMPERE], WITH, {}, ("cuda", "bfloat16", FA2)),
    ([AMPERE], ALONE, {}, ("cuda", "bfloat16", "sdpa")),
    ([AMPERE], VARLEN, {}, ("cuda", "bfloat16", "varlen")),
    ([AMPERE], WITH, {"dtype": "float16"}, ("cuda", "float16", FA2)),
    ([AMPERE], VARLEN, {"dtype": "float32"}, ("cuda", "float32", "sdpa")),
    ([AMPERE], VARLEN, {"backend": "sdpa"}, ("cuda", "bfloat16", "sdpa")),
    ([AMPERE], VARLEN, {"backend": FA2}, ("cuda", "bfloat16", FA2)),
    ([HOPPER], VARLEN, {"backend": "varlen", "dtype": "float16"}, ("cuda", "float16", "varlen")),
    ([HOPPER], WITH, {"device": "cpu"}, ("cpu", "float32", "sdpa")),
    ([TURING, HOPPER], WITH, {"device": "cuda:1"}, ("cuda:1", "bfloat16", FA2)),
    ([HOPPER, TURING], WITH, {"device": "cuda:1"}, ("cuda:1", "float16", "sdpa")),
    ([HOPPER, TURING], VARLEN, {"device": "map"}, ("map", "float16", "sdpa")),
    ([HOPPER, HOPPER], WITH, {"device": "map"}, ("map", "bfloat16", FA2)),
]


@pytest.mark.parametrize(("capabilities", "installed", "asked", "found"), TABLE)
def test_what_is_chosen(machine, capabilities, installed, asked, found):
    machine(*capabilities, **installed)
    assert chosen(**asked) == found


@pytest.mark.parametrize("head_dim", [60, 288])
def test_heads_that_the_kernels_cannot_take(machine, head_dim):
    """With auto they run on sdpa; a backend that was asked for is refused."""
    machine(HOPPER, varlen=True)

    def backend(size, **asked):
        config = ModelConfig("m", path="p", **asked)
        return hardware.for_heads(hardware.choose(config), config, size).backend

    assert [backend(128), backend(head_dim), backend(head_dim, backend="sdpa")] == ["varlen", "sdpa", "sdpa"]
    for asked in ("varlen", FA2):
        with refused("model.backend", value=asked):
            backend(head_dim, backend=asked)


@pytest.mark.parametrize(
    ("capabilities", "flash", "asked", "field", "names"),
    [
        (CPU, True, {"device": "cuda:0"}, "device", "model.device=cpu"),
        ([AMPERE], True, {"device": "cuda:3"}, "device", "1"),
        ([AMPERE], True, {"device": "tpu"}, "device", "auto"),
        (CPU, True, {"dtype": "int3"}, "dtype", "auto"),
        (CPU, True, {"backend": "eager"}, "backend", "auto"),
        (CPU, True, {"backend": FA2}, "backend", "model.device"),
        ([AMPERE], True, {"backend": FA2, "device": "cpu"}, "backend", "model.device"),
        ([AMPERE], True, {"backend": FA2, "dtype": "float32"}, "backend", "model.dtype"),
        ([TURING], True, {"backend": FA2}, "backend", "model.backend=sdpa"),
        ([AMPERE, VOLTA], True, {"backend": FA2, "device": "map"}, "backend", "model.backend=sdpa"),
        ([AMPERE], False, {"backend": FA2}, "backend", "README"),
        (CPU, True, {"backend": "varlen"}, "backend", "model.device"),
        ([AMPERE], True, {"backend": "varlen"}, "backend", "torch"),
    ],
)
def test_what_cannot_run_is_a_sentence(machine, capabilities, flash, asked, field, names):
    machine(*capabilities, flash=flash)
    with refused(f"model.{field}", value=asked[field], names=names):
        chosen(**asked)


BROKEN = [ImportError("flash_attn_2_cuda.so: undefined symbol"), OSError("libcudart.so.11.0"), SimpleNamespace()]


@pytest.mark.parametrize("flash", BROKEN)
def test_a_flash_attn_that_cannot_be_used_is_a_note_or_a_refusal(machine, flash):
    machine(AMPERE, flash=flash)
    found = hardware.choose(ModelConfig("m", path="p"))
    assert found.backend == "sdpa"
    (note,) = found.notes
    assert "2.8.3" in note
    with refused("model.backend", value=FA2) as caught:
        chosen(backend=FA2)
    assert "2.8.3" in caught.value.why
    assert hardware.unserved(FA2, torch.bfloat16, AMPERE)
    for asked in ({"backend": "sdpa"}, {"dtype": "float32"}):  # no note where it would not be used
        assert hardware.choose(ModelConfig("m", path="p", **asked)).notes == ()


def test_flash_attn_4_alone_is_no_flash_attn(tmp_path, monkeypatch):
    """It brings a namespace package of the same name."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn_4-4.0.0.dist-info").mkdir()
    (tmp_path / "flash_attn_4-4.0.0.dist-info" / "METADATA").write_text("Name: flash-attn-4\nVersion: 4.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(flash_attention, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert hardware.unserved(FA2, torch.bfloat16, AMPERE)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An environment without flash-attn and with `kernels`, in a folder whose lock names a cached build of the hub."""
    pytest.importorskip("kernels", reason="the package kernels is not installed")
    commit = "0123456789abcdef0123456789abcdef01234567"
    lock = {"dependency": {"repo-id": flash_attention.HUB, "version": 4}, "lock": {"commit": commit}}
    (tmp_path / "kernels.lock").write_text(json.dumps([lock]))
    cache = tmp_path / "cache" / "kernels--kernels-community--flash-attn2" / "snapshots" / commit
    build = cache / "build" / "torch-cpu"
    build.mkdir(parents=True)
    about = {"id": "_flash_attn2_test", "name": "flash-attn2", "version": 4, "license": "BSD-3-Clause"}
    (build / "metadata.json").write_text(json.dumps({**about, "python-depends": [], "backend": {"type": "cpu"}}))
    (build / "__init__.py").write_text("def flash_attn_with_kvcache(): ...\ndef flash_attn_func(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kernels.resolver.CACHE_DIR", str(tmp_path / "cache"))
    return SimpleNamespace(commit=commit, build=build)


def test_the_build_on_the_hub_is_loaded_at_its_locked_commit(hub):
    assert flash_attention.flash_version() == f"{flash_attention.HUB}@{hub.commit}"
    assert hardware.unserved(FA2, torch.bfloat16, AMPERE) is None
    assert Path(flash_attention.flash_kernels().__file__).parent == hub.build


def test_a_build_on_the_hub_that_is_not_in_the_cache_is_refused(hub):
    shutil.rmtree(hub.build)
    why, _ = hardware.unserved(FA2, torch.bfloat16, AMPERE)
    assert hub.commit in why


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"lock": 3}]'])
def test_a_damaged_lock_file_is_a_refusal(content, tmp_path, monkeypatch):
    (tmp_path / "kernels.lock").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert hardware.unserved(FA2, torch.bfloat16, AMPERE)


def test_the_readme_installs_what_the_extra_asks_for():
    """flash-attn imports torch while it is built, so `pip install '.[flash]'` fails on a bare environment."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = re.findall(r"`(pip install[^`]*flash[^`]*)`", (ROOT / "README.md").read_text())
    assert commands == [f"pip install --no-build-isolation '{requirement}'" for requirement in extras["flash"]]
