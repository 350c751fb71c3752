"""A scorer that returns something else than scores of the prompt's past fails by its name, and keeps nothing."""

from dataclasses import dataclass
from typing import Any

import pytest

from baselines.uniform import UniformAllocator
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.prefill import Setting
from compresskv.errors import PromptError
from compresskv.eviction import EvictionMethod, LayerPrefill, LayerScores
from tests.support import tiny
from tests.support.refusals import refused


@dataclass(frozen=True)
class Wrong:
    what: str
    window: int = 4

    def __call__(self, layer: LayerPrefill) -> Any:
        norms = layer.keys.norm(dim=-1)
        return {
            "nothing": None,
            "a tensor": norms[:, : -self.window],
            "one column short": LayerScores(norms[:, : -self.window - 1]),
            "the whole prompt": LayerScores(norms),
            "one head": LayerScores(norms[:1, : -self.window]),
            "three axes": LayerScores(norms[:, : -self.window, None]),
        }[self.what]


WRONG = ["nothing", "a tensor", "one column short", "the whole prompt", "one head", "three axes"]


@pytest.mark.parametrize("what", WRONG)
def test_scores_are_those_of_the_past(what):
    model, ids = tiny.model("llama"), tiny.prompt(60)
    setting = Setting(EvictionMethod(Wrong(what), UniformAllocator()), 20)
    with attached(model):
        with refused("method.scorer", value="Wrong") as caught:
            generate(model, ids, [setting], Stopping(2))
        assert not isinstance(caught.value, PromptError)  # other prompts would fail, too
        with refused("method.scorer", value="Wrong"):
            generate_in_layer(model, ids, setting, Stopping(2))
