"""`make bench` on a GPU: its tokens are where the model is."""

import copy
from types import SimpleNamespace

from bench.main import _steps
from compresskv.engine.attention import attached
from compresskv.engine.decode import decode_cache
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import FULL
from tests.support import tiny
from tests.support.logical_devices import logical_devices, place


def test_its_steps_run_on_the_device_of_the_model(gpu_backend):
    with logical_devices():
        model, ids = place(copy.deepcopy(tiny.model("llama")), "cuda:0"), tiny.prompt(40).to("cuda:0")
        with attached(model, gpu_backend):
            prompt = prefill(model, ids, 1)
            cache = decode_cache(prompt, [prompt.kept(FULL)] * 2, 4)
            _steps(SimpleNamespace(model=model, device=model.device), cache, 2, 40, 3)
    assert cache.get_seq_length() == 43
