"""On real CUDA devices: `make test-gpu`. Skipped, with the reason, where there is none.

sdpa in float32 must give the CPU's tokens; flash-attn and half precision its logits as nearly as rounding allows.
"""

import copy

import pytest
import torch
from accelerate import dispatch_model

from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping, decode, decode_cache
from compresskv.engine.forward import forward_tokens
from compresskv.engine.generation import generate
from compresskv.engine.graph import graphs
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL, Setting
from compresskv.hardware import unserved
from compresskv.probe import backend_fault
from evals.running.forecast import forecast
from tests.support import flash_attention, tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv, evicting_layers, settings_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"torch {torch.__version__} sees no CUDA device"),
]

NEW = Stopping(12)


def needs(backend: str) -> pytest.MarkDecorator:
    """Skip where `backend` cannot run in half precision, with the reason."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    reason = unserved(backend, torch.bfloat16, capability)
    return pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason and reason[0]}")


needs_flash, needs_varlen = needs("flash_attention_2"), needs("varlen")
BACKENDS = [
    "sdpa",
    pytest.param("varlen", marks=needs_varlen),
    pytest.param("flash_attention_2", marks=needs_flash),
]


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen2-hybrid", "qwen3"])
def test_sdpa_in_float32_gives_the_tokens_of_the_cpu(family):
    model, ids = tiny.model(family), tiny.prompt(90)
    settings = settings_for(len(evicting_layers(model)))
    with attached(model):
        expected = generate(model, ids, settings, NEW)
    there = copy.deepcopy(model).to("cuda")
    with attached(there):
        assert generate(there, ids.cuda(), settings, NEW) == expected
        assert generate(there, ids.cuda(), settings, NEW, chunk=37) == expected
        assert [generate_in_layer(there, ids.cuda(), setting, NEW) for setting in settings] == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_logits_of_the_cpu(backend, dtype):
    """Rows of every length, decoded with the CPU's tokens; half precision carries 8 or 11 bits through four layers."""
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = [Setting(SNAPKV, 20), Setting(RAGGED, 40), Setting(STREAMING, 24), Setting(compresskv(4), 36)]
    tokens = torch.randint(0, 96, (8, 4), generator=torch.Generator().manual_seed(0))

    def steps(model, ids, kept=None):
        prompt = prefill(model, ids, 4)
        kept = kept or [prompt.kept(setting) for setting in settings]
        kept = [[[head.to(ids.device) for head in layer] for layer in setting] for setting in kept]
        cache = decode_cache(prompt, kept, 8)
        rows = [forward_tokens(model, row.to(ids.device), cache, 90 + step) for step, row in enumerate(tokens)]
        return kept, torch.stack(rows).cpu()

    with attached(model):
        kept, expected = steps(model, ids)
    there = copy.deepcopy(model).to("cuda", dtype)
    with attached(there, backend):
        _, logits = steps(there, ids.cuda(), kept)
    error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < (0.1 if dtype == torch.bfloat16 else 0.02)


@needs_flash
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_attn_takes_ragged_rows_from_one_storage(head_dim):
    """`cache_batch_idx` over a view whose batch stride is one slot: what RaggedTable builds on."""
    import flash_attn

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 900, (40,), generator=generator).sort().values
    sizes = (lengths + 31) // 32 * 32 + 8
    starts = sizes.cumsum(0) - sizes
    slots, longest = int(sizes.sum()), int(sizes.max())

    def random(*shape):
        return torch.randn(shape, generator=generator).to("cuda", torch.bfloat16)

    query, key, value = random(40, 1, 4, head_dim), random(40, 1, 1, head_dim), random(40, 1, 1, head_dim)
    storage = random(2, slots, head_dim)

    def call(kernels, storage):
        views = [
            part.as_strided((slots - longest + 1, longest, 1, head_dim), (head_dim, head_dim, head_dim, 1))
            for part in (storage[0], storage[1].clone())
        ]
        out = kernels.flash_attn_with_kvcache(
            query.to(storage.dtype),
            *views,
            k=key.to(storage.dtype),
            v=value.to(storage.dtype),
            cache_seqlens=lengths.int().cuda(),
            cache_batch_idx=starts.int().cuda(),
            softmax_scale=head_dim**-0.5,
        )
        return out, views[0]

    out, keys = call(flash_attn, storage.clone())
    expected, expected_keys = call(flash_attention.KERNELS, storage.float())
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(keys.float(), expected_keys)  # the new tokens are behind each row's, and nothing else changed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decode_step_never_waits_for_the_gpu(backend):
    model, ids = copy.deepcopy(tiny.model("llama")).to("cuda", torch.bfloat16), tiny.prompt(90).cuda()
    assert backend_fault(model, backend) is None  # the check at loading
    with attached(model, backend):
        prompt = prefill(model, ids, 4)
        cache = decode_cache(prompt, [prompt.kept(Setting(RAGGED, 40)), prompt.kept(Setting(SNAPKV, 20))], 8)
        tokens = torch.tensor([3, 5], device="cuda")
        forward_tokens(model, tokens, cache, 90)
        torch.cuda.set_sync_debug_mode("error")
        try:
            forward_tokens(model, tokens, cache, 91)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_gives_the_tokens_of_eager_steps(backend):
    """Thirty rows, of which some stop, with storage that grows."""
    model, ids = copy.deepcopy(tiny.model("llama")).to("cuda", torch.bfloat16), tiny.prompt(90).cuda()
    settings = [Setting(method, budget) for method in (SNAPKV, RAGGED, STREAMING) for budget in range(20, 60, 4)]

    def tokens(replay, stopping):
        with attached(model, backend), graphs(model, replay):
            prompt = prefill(model, ids, 4)
            cache = decode_cache(prompt, [prompt.kept(setting) for setting in settings], 9)
            return decode(model, cache, prompt.logits, 90, len(settings), stopping)

    free = tokens(False, Stopping(24))
    stop = Stopping(24, frozenset(row[5] for row in free[::3]))
    assert tokens(True, stop) == tokens(False, stop)


@pytest.mark.parametrize("chunk", [None, 512])
def test_the_forecast_is_near_what_is_allocated(chunk):
    model, ids = copy.deepcopy(tiny.model("llama")).to("cuda", torch.bfloat16), tiny.prompt(4000).cuda()
    settings = [FULL, *(Setting(SNAPKV, budget) for budget in (128, 512))]
    with attached(model):
        generate(model, ids[:600], settings, Stopping(8), chunk=chunk)  # cuBLAS keeps its workspace from here on
    forecasted = forecast(model, settings, 4000, 8, chunk)
    torch.cuda.reset_peak_memory_stats()
    with attached(model):
        generate(model, ids, settings, Stopping(8), chunk=chunk)
    assert 0.7 < torch.cuda.max_memory_allocated() / forecasted.peak < 1.3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} CUDA devices, two are needed")
def test_two_gpus_give_the_tokens_of_the_cpu():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    settings = settings_for(4)
    with attached(model):
        expected = generate(model, ids, settings, NEW)
    ends = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    layers = {f"model.layers.{index}": index % 2 for index in range(4)}
    there = dispatch_model(copy.deepcopy(model), {**ends, **layers})
    with attached(there):
        assert generate(there, ids.cuda(), settings, NEW) == expected
        assert [generate_in_layer(there, ids.cuda(), setting, NEW) for setting in settings] == expected
