"""The forecast of memory against the storages that are alive, without parameters, in Llama's proportions."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compresskv.engine import memory
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.footprint import Footprint
from compresskv.engine.generation import generate
from compresskv.engine.live_bytes import LiveBytes, LiveBytesMode
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import PromptShape
from compresskv.observation import ObservationConfig
from evals.running import forecast as forecasts
from evals.running.forecast import forecast
from tests.methods.construction import context, method
from tests.support.logical_devices import logical_devices, place
from tests.support.methods_in_use import SNAPKV

LENGTH, LAYERS, WINDOW = 512, 4, 8


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=LAYERS, vocab_size=64)).eval()


def ids():
    return torch.randint(0, 64, (LENGTH,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("dtype", "chunk"), [(torch.bfloat16, None), (torch.float32, None), (torch.float32, 128), (torch.bfloat16, 150)]
)
def test_prefill_on_the_cpu(llama, dtype, chunk):
    model = copy.deepcopy(llama).to(dtype)
    with attached(model), LiveBytesMode([*model.parameters(), *model.buffers()]) as mode:
        prefill(model, ids(), WINDOW, chunk)
    shape = Footprint(model, LENGTH)
    assert 0.95 < (shape.prompt + shape.activations(chunk or LENGTH)) / mode.live.peak < 1.05


@pytest.mark.parametrize(
    ("gpu_backend", "dtype", "capability"),
    [
        ("sdpa", torch.bfloat16, (8, 0)),
        ("sdpa", torch.float16, (7, 5)),
        ("sdpa", torch.float32, (9, 0)),
        ("varlen", torch.bfloat16, (8, 0)),
        ("flash_attention_2", torch.bfloat16, (8, 0)),
    ],
    indirect=["gpu_backend"],
)
@pytest.mark.parametrize("chunk", [None, 64])
def test_prefill_on_gpus(llama, gpu_backend, dtype, capability, chunk, monkeypatch):
    """No masks; keys and values of every query head where flash cannot run, which show with a short chunk."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    with logical_devices() as counts:
        model = place(copy.deepcopy(llama).to(dtype), "cuda:0")
        with attached(model, gpu_backend):
            counts.live = LiveBytes([tensor.inner for tensor in (*model.parameters(), *model.buffers())])
            prefill(model, ids().to("cuda:0"), WINDOW, chunk)
        shape = Footprint(model, LENGTH, "flash_attention_2" if "fa2" in gpu_backend else "varlen")
        forecasted = shape.prompt + shape.activations(chunk or LENGTH)
    assert 0.95 < forecasted / counts.live.peak < 1.05


@pytest.mark.parametrize(
    ("names", "dtype", "chunk"),
    [
        (["snapkv"], torch.bfloat16, None),
        (["cake"], torch.bfloat16, 512),
        (["cake"], torch.float32, None),
        (["compresskv"], torch.float32, 512),
        (["adakv", "knorm"], torch.bfloat16, None),
        (["streaming_llm", "snapkv", "cake", "compresskv"], torch.float32, None),
    ],
)
def test_scoring(llama, names, dtype, chunk):
    """Nothing of the prefill stays but the prompt's keys and values."""
    model = copy.deepcopy(llama).to(dtype)
    where = context(PromptShape(LAYERS, 2, LENGTH, WINDOW), group=4, observation=ObservationConfig())
    settings = [Setting(method(name, where), 64) for name in names]
    with attached(model), LiveBytesMode([*model.parameters(), *model.buffers()]) as mode:
        prompt = prefill(model, ids(), WINDOW, chunk)
        mode.live.reset()
        prompt.score(settings)
        peak = mode.live.peak
    shape = Footprint(model, LENGTH)
    scoring = shape.scoring({setting.method.scorer for setting in settings}, WINDOW)
    assert 0.95 < (shape.prompt + scoring.scores + scoring.passing) / peak < 1.05
    for setting in settings:
        prompt.kept(setting)
    assert prompt.nbytes == shape.prompt + scoring.scores + scoring.rankings


def test_observers_work_while_the_prompt_is_processed(llama):
    where = context(PromptShape(LAYERS, 2, LENGTH, WINDOW), group=4, observation=ObservationConfig())
    setting = Setting(method("h2o", where), 64)
    with attached(llama), LiveBytesMode([*llama.parameters(), *llama.buffers()]) as mode:
        prompt = prefill(llama, ids(), WINDOW, scorers=[setting.method.scorer])
        prompt.kept(setting)
    shape = Footprint(llama, LENGTH)
    scoring = shape.scoring({setting.method.scorer}, WINDOW)
    assert forecast(llama, [setting], LENGTH, 1).activations == shape.activations(LENGTH) + scoring.passing
    assert 0.95 < (shape.prompt + shape.activations(LENGTH) + scoring.passing) / mode.live.peak < 1.6
    assert prompt.nbytes == shape.prompt + scoring.scores + scoring.rankings


def test_the_full_cache_decodes_in_the_place_of_the_prompt(llama):
    """No more than a layer of it is held twice."""
    with attached(llama), LiveBytesMode([*llama.parameters(), *llama.buffers()]) as mode:
        generate(llama, ids(), [FULL], Stopping(4), chunk=16)
    shape = Footprint(llama, LENGTH)
    assert mode.live.peak < 1.5 * shape.prompt
    assert 0.95 < (shape.prompt + shape.full_row(4)) / mode.live.peak < 1.1


@pytest.mark.parametrize("budget", [None, 64])
def test_fidelity_needs_the_prompt_and_a_full_cache_beside_each_batch(llama, budget):
    settings = [FULL] if budget is None else [Setting(SNAPKV, budget)] * 3
    with attached(llama), LiveBytesMode([*llama.parameters(), *llama.buffers()]) as mode:
        generate(llama, ids(), settings, Stopping(4), chunk=64, reference=[5, 17, 40])
    made = forecast(llama, settings, LENGTH, 4, chunk=64, fidelity=True)
    assert 0.95 < (made.peak - made.used) / mode.live.peak < 1.1


@pytest.fixture
def two_gpus(monkeypatch, llama):
    """A model with three of its layers on one GPU and one on another, and what is free on each."""
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    free = {first: 10_000_000, second: 10_000_000}
    for module in (memory, forecasts):
        monkeypatch.setattr(module, "free_by_device", lambda model: free)
        monkeypatch.setattr(module, "layer_shares", lambda model: {first: 0.75, second: 0.25})
    monkeypatch.setattr(forecasts, "used_bytes", lambda model: 0)
    return SimpleNamespace(model=llama, free=free, first=first, second=second)


def test_each_gpu_is_compared_for_itself(two_gpus):
    """Activations land on one GPU at a time, caches on each by its share of the layers."""
    made = forecast(two_gpus.model, [FULL], LENGTH, 8)
    assert made.fits
    assert "on 2 GPUs" in str(made)
    needed = int(0.25 * made.prompt + made.activations)
    two_gpus.free[two_gpus.second] = needed - 1
    made = forecast(two_gpus.model, [FULL], LENGTH, 8)
    assert made.peak < made.allowed  # together they would do
    assert "it may not fit" in str(made)
    two_gpus.free[two_gpus.second] = needed + 1
    assert forecast(two_gpus.model, [FULL], LENGTH, 8).fits
    for device, free, fitting in ((two_gpus.first, 3_000_000, 4_000_000), (two_gpus.second, 500_000, 2_000_000)):
        two_gpus.free.update({two_gpus.second: 10_000_000, device: free})  # the fullest decides what a batch may take
        assert memory.free_bytes(two_gpus.model) == fitting


def test_shares_of_layers_on_logical_devices(llama):
    with logical_devices():
        places = {"": "cuda:0", "model.layers.3": "cuda:1"}
        model = place(copy.deepcopy(llama), places)
        assert memory.layer_shares(model) == {torch.device("cuda:0"): 0.75, torch.device("cuda:1"): 0.25}
        assert memory.gpus(model) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert memory.layer_shares(llama) == {torch.device("cpu"): 1.0}
