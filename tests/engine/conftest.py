"""Backends for the engine's tests: GPU backends with kernels that run on the CPU, or on fake CUDA tensors."""

from contextlib import contextmanager

import pytest
import torch

from compresskv.engine.attention import forget, register
from compresskv.engine.backends import FlashAttention2, MaskedSDPA, Varlen
from tests.support.flash_attention import KERNELS, ON_LOGICAL_DEVICES, varlen_attn
from tests.support.logical_devices import on_the_cpu

LAYOUTS = {
    "masked sdpa": MaskedSDPA,
    "varlen": lambda: Varlen(varlen_attn),
    "flash-attn": lambda: FlashAttention2(KERNELS),
}


@pytest.fixture(params=["sdpa", *LAYOUTS])
def layout(request):
    """The name of a backend that runs on the CPU: the CPU's backend, or one with the cache layout of a GPU."""
    if request.param == "sdpa":
        yield "sdpa"
        return
    name = register("compresskv_test", LAYOUTS[request.param]())
    yield name
    forget(name)


@contextmanager
def for_gpus(backend):
    """Register a backend for fake CUDA tensors of the Ampere generation; yields its name."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        if backend == "sdpa":
            yield "sdpa"
            return
        flash = backend == "flash_attention_2"
        name = f"compresskv_logical_{'fa2' if flash else backend}"
        yield register(name, FlashAttention2(ON_LOGICAL_DEVICES) if flash else Varlen(on_the_cpu(varlen_attn)))
        forget(name)


@pytest.fixture
def ampere():
    with for_gpus("sdpa"):
        yield


@pytest.fixture(params=["sdpa", "varlen", "flash_attention_2"])
def gpu_backend(request):
    with for_gpus(request.param) as name:
        yield name
