"""The seam refuses what it would get wrong."""

import copy

import pytest
import torch

from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached, attention_forward
from tests.support import tiny
from tests.support.logical_devices import logical_devices, place
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import refused

FLASH = "flash_attention_2"


def test_refusals():
    model = tiny.model("llama")
    ids = tiny.prompt(40)
    padded = torch.ones(1, 40, dtype=torch.long)
    padded[0, :5] = 0
    for mask in (padded, torch.ones(1, 1, 40, 40, dtype=torch.bool)):
        with refused("attention_mask"), compressed(model, SNAPKV, 20) as cache:
            model(ids[None], attention_mask=mask, past_key_values=cache)
    with refused("input_ids"), compressed(model, SNAPKV, 20) as cache:
        model(ids.expand(2, -1), past_key_values=cache)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_would_be_wrong_is_refused(name):
    module = torch.nn.Module().eval()
    q = torch.zeros(1, 2, 3, 4)
    with refused(name):
        attention_forward(module, q, q, q, None, **{name: torch.ones(1)})


def test_flash_attention_is_refused_where_it_cannot_run(monkeypatch):
    model = tiny.model("llama")
    with refused("backend", value=FLASH), attached(model, FLASH):
        pass
    with refused("backend", value=FLASH), compressed(model, SNAPKV, 20, backend=FLASH):
        pass
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    with logical_devices(), refused("backend", value=FLASH):
        attached(place(copy.deepcopy(model), "cuda:0"), FLASH).__enter__()
    assert model.config._attn_implementation == "sdpa"
