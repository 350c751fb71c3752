"""Every path on fake GPUs: no operation mixes devices, and tokens are those of the CPU."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.numpy
import torch

from bench.main import _steps
from compresskv.calibration import layer_errors, retrieval_heads
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode_cache
from compresskv.engine.forward import forward_given
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import PromptShape
from compresskv.kept_tokens import encoded
from compresskv.schedule import EvictionSchedule
from tests.methods.construction import context, method
from tests.support import tiny
from tests.support.logical_devices import LogicalTensor, logical_devices, place, spread
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv, evicting_layers
from tests.support.refusals import refused

NEW = Stopping(5)
PLENTY = 10**9


pytestmark = pytest.mark.usefixtures("ampere")


def on_one(model):
    return place(copy.deepcopy(model), "cuda:0")


def on_two(model):
    """The layers in turn on two devices, the rest on the second."""
    return spread(copy.deepcopy(model), ["cuda:0", "cuda:1"] * 2, "cuda:1")


def settings_of(model):
    semantic = compresskv(len(evicting_layers(model)))
    return [Setting(SNAPKV, 20), Setting(RAGGED, 40), Setting(semantic, 36), Setting(STREAMING, 24), FULL]


ONE_AND_TWO = [(on_one, "flash_attention_2"), (on_two, "sdpa"), (on_two, "varlen")]
on_one_and_two = pytest.mark.parametrize(("move", "gpu_backend"), ONE_AND_TWO, indirect=["gpu_backend"])


@on_one_and_two
def test_every_path(move, gpu_backend):
    """Shared, in chunks and in-layer; fidelity too, for which the full cache decodes again beside all others."""
    model = tiny.model("qwen2-hybrid" if gpu_backend == "sdpa" else "llama")
    ids, reference = tiny.prompt(70), [5, 17, 40]
    settings = settings_of(model)
    with attached(model):
        free = [g.tokens for g in generate(model, ids, settings, NEW)]
        # A token that some produce, at different steps.
        ends = {token: {row.index(token) if token in row else 5 for row in free} for row in free for token in row[1:]}
        stopping = Stopping(5, frozenset([max(ends, key=lambda token: len(ends[token]))]))
        expected = generate(model, ids, settings, stopping)
        measured = [each.fidelity for each in generate(model, ids, settings, NEW, reference=reference)]
    assert len({len(generation.tokens) for generation in expected}) > 1
    with logical_devices() as counts:
        moved = move(model)
        there = ids.to(moved.device)
        with attached(moved, gpu_backend):
            assert generate(moved, there, settings, stopping, memory=PLENTY) == expected
            assert counts.moves == 0 or move is on_two
            assert generate(moved, there, settings, stopping, chunk=30, memory=PLENTY) == expected
            assert [generate_in_layer(moved, there, setting, stopping) for setting in settings] == expected
            found = generate(moved, there, settings, NEW, memory=PLENTY, reference=reference)
    for generation, fidelity in zip(found, measured, strict=True):
        for measure in ("kl", "agreement", "reference_nll", "kl_per_token"):
            value = getattr(fidelity, measure)
            assert getattr(generation.fidelity, measure) == pytest.approx(value, rel=1e-4, abs=1e-4)


@on_one_and_two
def test_several_tokens_at_once(move, gpu_backend):
    """Past the room of the rows, and back: layers share their table, but go through the tokens one after the other."""
    model, ids, given = tiny.model("llama"), tiny.prompt(70), tiny.prompt(9, seed=5)
    settings = settings_of(model)

    def logits(model, ids, given):
        prompt = prefill(model, ids, 8)
        cache = decode_cache(prompt, [prompt.kept(setting) for setting in settings], 2)
        after = [forward_given(model, given[:2], 5, cache, 70), forward_given(model, given[2:6], 5, cache, 72)]
        cache.crop(71)
        after += [forward_given(model, given[1:8], 5, cache, 71), forward_given(model, given[8:], 5, cache, 78)]
        cache.crop(-1)
        return [part.cpu() for part in (*after, forward_given(model, given[8:], 5, cache, 78))]

    with attached(model):
        expected = logits(model, ids, given)
    with logical_devices():
        moved = move(model)
        with attached(moved, gpu_backend):
            found = logits(moved, ids.to(moved.device), given.to(moved.device))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@on_one_and_two
def test_eviction_while_decoding(move, gpu_backend):
    """Shared, in-layer and fidelity; H2O's observers are on the device of their layer."""
    model, ids, new = tiny.model("llama"), tiny.prompt(70), Stopping(8)
    schedule = EvictionSchedule("prompt+decode", 3, "prompt" if gpu_backend == "sdpa" else "none")
    h2o = method("h2o", context(PromptShape(4, 2, 70, 4), group=3))
    settings = [Setting(h2o, 30), Setting(RAGGED, 40), Setting(SNAPKV, 20), FULL]

    def paths(model, ids):
        options = {"schedule": schedule, "memory": PLENTY, "reference": [], "along": 11}
        together = generate(model, ids, settings, new, **options)
        for setting, shared in zip(settings[:2], together, strict=False):
            assert generate_in_layer(model, ids, setting, new, schedule=schedule) == replace(shared, fidelity=None)
        return together

    with attached(model):
        expected = paths(model, ids)
    assert sum(each.evicted_later for each in expected) == 3
    with logical_devices():
        moved = move(model)
        with attached(moved, gpu_backend):
            found = paths(moved, ids.to(moved.device))
    for one, other in zip(found, expected, strict=True):
        assert replace(one, fidelity=None) == replace(other, fidelity=None)
        assert len(one.fidelity.kl_per_token) == 10
        assert one.fidelity.kl_per_token == pytest.approx(other.fidelity.kl_per_token, rel=1e-4, abs=1e-4)


def test_kept_tokens_of_two_devices_are_one_file():
    model, ids = tiny.model("llama"), tiny.prompt(70)

    def file(model, ids):
        (found,) = generate(model, ids, [Setting(SNAPKV, 20)], NEW, memory=PLENTY)
        tensors = safetensors.numpy.load(encoded(found.positions, model.config, ids, {}))
        return {name: tensor.tolist() for name, tensor in tensors.items()}

    with attached(model):
        expected = file(model, ids)
    with logical_devices():
        moved = on_two(model)
        with attached(moved):
            assert file(moved, ids.to(moved.device)) == expected


def test_crop_and_deepcopy_between_evictions(gpu_backend):
    model, ids, given = tiny.model("llama"), tiny.prompt(60), tiny.prompt(10, seed=5)

    def logits(model, ids, given, backend):
        with compressed(model, SNAPKV, 20, when="prompt+decode", interval=4, backend=backend) as cache:
            model(ids[None], past_key_values=cache)
            model(given[None, :5], past_key_values=cache)  # evicted after these
            copied = copy.deepcopy(cache)
            model(given[None, 5:7], past_key_values=cache)
            cache.crop(65)
            found = []
            for token in given[5:]:
                found += [model(token[None, None], past_key_values=one).logits.cpu() for one in (cache, copied)]
            with refused("max_length"):
                cache.crop(65)
        return torch.cat(found)

    expected = logits(model, ids, given, "sdpa")
    with logical_devices():
        moved = on_two(model)
        found = logits(moved, ids.to(moved.device), given.to(moved.device), gpu_backend)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[::2], found[1::2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("move", [on_one, on_two])
def test_calibration(move):
    """Retrieval heads and layer errors are the CPU's."""
    model, ids, span = tiny.model("llama"), tiny.prompt(60), range(20, 26)

    def calibrate(model, ids):
        heads = retrieval_heads.observe(model, ids, span, 4, 5, lambda tokens: False)
        projections = [layer.self_attn.o_proj for layer in model.model.layers]
        scorers = [compresskv(4).scorer]
        errors, kept = layer_errors.observe(model, ids, heads.tokens, scorers, projections, 8)
        return heads, errors, layer_errors.coverage(kept[0], span)

    expected = calibrate(model, ids)
    with logical_devices():
        moved = move(model)
        found = calibrate(moved, ids.to(moved.device))
    assert found[0].tokens == expected[0].tokens
    for name in ("semantic", "traditional", "retrieval_reasoning"):
        torch.testing.assert_close(getattr(found[0], name), getattr(expected[0], name))
    torch.testing.assert_close(found[1], expected[1])
    assert found[2] == expected[2]


def test_a_mixed_operation_is_an_error():
    with logical_devices():
        here, there = torch.zeros(3, device="cuda:0"), torch.zeros(3, device="cuda:1")
        assert isinstance(here, LogicalTensor)
        with pytest.raises(RuntimeError, match="different devices"):
            here + there
        with pytest.raises(RuntimeError, match="different devices"):
            torch.stack([here, torch.zeros(3)])


@pytest.mark.parametrize(
    ("dtype", "capability"), [(torch.float32, (9, 0)), (torch.bfloat16, (7, 5)), (torch.bfloat16, (9, 0))]
)
def test_the_prefill_on_cuda_takes_no_mask_and_never_the_kernel_that_holds_all_logits(dtype, capability, monkeypatch):
    """Groups only for flash, and causal chunks without a mask: other kernels need memory of S²."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    model, ids = tiny.model("llama"), tiny.prompt(70)
    flash = dtype == torch.bfloat16 and capability == (9, 0)
    with logical_devices() as counts:
        moved = place(copy.deepcopy(model).to(dtype), "cuda:0")
        with attached(moved):
            generate(moved, ids.to("cuda:0"), [FULL], Stopping(1), memory=PLENTY)
            generate(moved, ids.to("cuda:0"), [FULL], Stopping(1), chunk=30, memory=PLENTY)
    assert counts.attention
    for query, key, _, mask, _, grouped in counts.attention:
        assert mask is None
        assert grouped == flash
        assert grouped or query[0][1] == key[0][1]


def test_steps_of_the_benchmark_run_on_the_device_of_the_model(gpu_backend):
    with logical_devices():
        model, ids = on_one(tiny.model("llama")), tiny.prompt(40).to("cuda:0")
        with attached(model, gpu_backend):
            prompt = prefill(model, ids, 1)
            cache = decode_cache(prompt, [prompt.kept(FULL)] * 2, 4)
            _steps(SimpleNamespace(model=model, device=model.device), cache, 2, 40, 3)
    assert cache.get_seq_length() == 43


def test_cudnn_is_left_out_only_meanwhile():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attached(tiny.model("llama")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
