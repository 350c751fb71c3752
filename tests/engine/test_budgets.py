"""Limits of launches, synchronisations and uploads, counted with fake CUDA tensors."""

import copy
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.prefill import forward_prompt, prefill
from compresskv.engine.setting import Setting
from compresskv.eviction import PromptShape
from compresskv.observation import ObservationConfig
from tests.engine.conftest import for_gpus
from tests.methods.construction import context, method
from tests.support.logical_devices import counting, logical_devices, place

LAYERS, LENGTH, BUDGETS = 4, 700, (32, 64, 128, 256, 512)
BACKENDS = ("sdpa", "varlen", "flash_attention_2")
METHODS = ("streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "compresskv")
ONCE = 24
"""Launches of a step outside the layers: embeddings, norm, head, and the choice of tokens."""


@pytest.fixture(scope="module")
def llama():
    """Llama's proportions of heads, tiny otherwise."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 32, "num_key_value_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=LAYERS, vocab_size=96, head_dim=4)).eval()


@pytest.fixture(scope="module")
def methods():
    shape = PromptShape(LAYERS, 8, LENGTH, 8)
    where = context(shape, group=4, observation=ObservationConfig())
    return {name: method(name, where) for name in (*METHODS, "adakv")}


@pytest.fixture(scope="module", params=BACKENDS)
def on_gpu(request, llama):
    """A fake CUDA model and a prompt, within `attached` under either backend."""
    ids = torch.randint(0, 96, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with for_gpus(request.param) as backend, logical_devices():
        model, ids = place(copy.deepcopy(llama), "cuda:0"), ids.to("cuda:0")
        with attached(model, backend):
            yield SimpleNamespace(model=model, ids=ids, backend=request.param)


@pytest.fixture
def prompt(on_gpu):
    return prefill(on_gpu.model, on_gpu.ids, 8)


def settings_of(methods):
    return [Setting(methods[name], budget) for name in METHODS for budget in BUDGETS]


def one_step(on_gpu, prompt, cache, rows):
    """What one forward pass of `rows` new tokens asks for."""
    with counting() as counts:
        decode(on_gpu.model, cache, prompt.logits, LENGTH, rows, Stopping(2))
    return counts


def test_thirty_rows(on_gpu, prompt, methods):
    settings = settings_of(methods)
    kept = [prompt.kept(setting) for setting in settings]
    with counting() as making:
        cache = decode_cache(prompt, kept, 50)
    assert making.total <= 62 * LAYERS
    assert making.uploads <= 4
    assert not making.syncs.total()

    step = one_step(on_gpu, prompt, cache, 30)
    assert step.total <= {"sdpa": 46, "varlen": 40, "flash_attention_2": 37}[on_gpu.backend] * LAYERS + ONCE
    kernel = {"varlen": "varlen_attn", "flash_attention_2": "flash_attn_with_kvcache"}.get(on_gpu.backend)
    assert kernel is None or step.launches[kernel] == LAYERS
    assert step.launches["scaled_dot_product_attention"] <= 7 * LAYERS
    assert step.syncs.total() == 2  # the chosen tokens, before and after the step
    assert step.uploads == 0

    with counting() as more:
        decode(on_gpu.model, cache, prompt.logits, LENGTH, 30, Stopping(4))
    assert more.attention == step.attention  # shapes stay the same
    assert more.syncs.total() == 4

    exact = sum(
        prompt.cache.kept_bytes([[-(-len(head) // 32) * 32 + 50 for head in layer] for layer in setting])
        for setting in kept
    )
    assert cache.nbytes <= (1.25 if on_gpu.backend == "sdpa" else 1) * exact

    with counting() as leaving:
        for left in range(29, 0, -1):
            cache.batch_select_indices(torch.tensor([row for row in range(left + 1) if row != left // 2]))
    assert leaving.total <= 29 * 6
    assert leaving.uploads <= 29 * 3
    assert not leaving.syncs.total()


def test_one_row_costs_the_same_whatever_the_method(on_gpu, prompt, methods):
    """A table of latencies must show the method, not our buckets."""
    totals = {}
    for name in ("snapkv", "adakv", "headkv"):
        cache = decode_cache(prompt, [prompt.kept(Setting(methods[name], 128))], 50)
        totals[name] = one_step(on_gpu, prompt, cache, 1).total
    limit = 1.15 if on_gpu.backend == "sdpa" else 1.0
    assert max(totals.values()) <= limit * totals["snapkv"]


def test_selection_waits_once_per_layer_at_most(prompt, methods):
    prompt.score([Setting(methods["adakv"], budget) for budget in BUDGETS])
    with counting() as counts:
        for budget in BUDGETS:
            prompt.kept(Setting(methods["adakv"], budget))
    assert counts.syncs.total() == LAYERS
    with counting() as counts:
        for setting in settings_of(methods):
            prompt.kept(setting)
    # CAKE's two figures per layer, read together, and whether any score is not a number.
    assert counts.syncs.total() <= LAYERS + len(METHODS)


@pytest.mark.parametrize(
    ("on_gpu", "name"), list(zip(cycle(BACKENDS), [*METHODS, "adakv"], strict=False)), indirect=["on_gpu"]
)
def test_in_layer(on_gpu, methods, name):
    cache = LayerwiseCache(on_gpu.model.config, Setting(methods[name], 128), LENGTH, 50)
    with counting() as counts:
        forward_prompt(on_gpu.model, on_gpu.ids, cache, None)
    assert counts.total <= 125 * LAYERS
    assert counts.syncs.total() <= 2 * LAYERS
