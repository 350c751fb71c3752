"""The seam refuses what it would get wrong."""

import pytest
import torch

from compresskv.engine.attention import attention_forward
from compresskv.engine.in_layer import compressed
from compresskv.errors import UserError
from tests import tiny
from tests.methods_in_use import SNAPKV


def test_refusals():
    model = tiny.model("llama")
    ids = tiny.prompt(40)
    padded = torch.ones(1, 40, dtype=torch.long)
    padded[0, :5] = 0
    with pytest.raises(UserError, match="padded"), compressed(model, SNAPKV, 20) as cache:
        model(ids[None], attention_mask=padded, past_key_values=cache)
    with pytest.raises(UserError, match="one prompt at a time"), compressed(model, SNAPKV, 20) as cache:
        model(ids.expand(2, -1), past_key_values=cache)
    with pytest.raises(UserError, match="attention mask"), compressed(model, SNAPKV, 20) as cache:
        model(ids[None], attention_mask=torch.ones(1, 1, 40, 40, dtype=torch.bool), past_key_values=cache)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_would_be_wrong_is_refused(name):
    module = torch.nn.Module().eval()
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UserError, match=name):
        attention_forward(module, q, q, q, None, **{name: torch.ones(1)})
