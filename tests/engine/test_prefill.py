"""What the prefill keeps for each setting, and what it refuses."""

import pytest
import torch

from compresskv.engine.attention import attached
from compresskv.engine.prefill import Setting, prefill
from tests.support import naive, tiny
from tests.support.methods_in_use import SNAPKV, evicting_layers, settings_for
from tests.support.refusals import refused


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "qwen3"])
def test_kept_positions_are_those_of_the_naive_reference(family):
    model, ids = tiny.model(family), tiny.prompt(90, seed=3)
    evicting = evicting_layers(model)
    for setting in settings_for(len(evicting)):
        with attached(model):
            kept = prefill(model, ids, 8).kept(setting)
        found = [[set(positions.tolist()) for positions in layer] for layer in kept]
        assert found == naive.kept_positions(model, ids, setting, evicting)


def test_an_empty_prompt_is_refused():
    model = tiny.model("llama")
    with attached(model), refused("prompt"):
        prefill(model, torch.tensor([], dtype=torch.long), 8)


@pytest.mark.parametrize("budget", [0, 3, 4])
def test_a_budget_within_the_window_is_refused(budget):
    with refused("budget", value=budget):
        Setting(SNAPKV, budget)
