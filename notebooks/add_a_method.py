# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add a method
#
# From the interface to your own method that passes the conformance suite, in twenty minutes.

# %%
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import torch

from baselines.uniform import UniformAllocator
from compresskv import EvictionMethod, Setting, attached, compressed, generate, load
from compresskv.engine.prefill import prefill
from compresskv.eviction import LayerPrefill, LayerScores, group_mean
from compresskv.methods import method_for
from evals.compose import job
from evals.conformance import check

needles = job("eval=niah", "eval.lengths=[400]", "eval.depths=3", "eval.needles=2", "eval.max_new_tokens=20")
loaded = load(needles.model)
task = needles.eval.make_tasks(loaded, needles.protocol)[0]
sample = task.sample(task.sample_ids[0])

# %% [markdown]
# ## What a method sees
#
# Eviction happens after a layer has attended to the whole prompt, so a method answers two questions about tensors:
#
# - a **scorer**: how important is each past token of this layer? `LayerPrefill → LayerScores`
# - an **allocator**: how many past tokens may each layer keep? `scores of the layers so far → capacities`
#
# The last `window` tokens are always kept; the *past* are those before them. Top-k, ties, and prompts that fit the
# budget are common code.

# %%
with attached(loaded.model, loaded.backend):
    prompt = prefill(loaded.model, sample.ids, window=8)
layer = prompt.layers[10]
attention = layer.window_attention(8)
print(f"keys and values   {list(layer.keys.shape)}: KV heads, prompt, head dimension")
print(f"window queries    {list(layer.queries.shape)}: query heads, window, head dimension")
print(f"window attention  {list(attention.shape)}: query heads, window, prompt")
print(f"each of its rows sums to {attention.sum(-1).mean():.2f}")

# %% [markdown]
# ## The smallest method
#
# A scorer is any callable with a `window` that returns one score per KV head and past token. Use a frozen dataclass:
# settings with equal scorers share their scores, and results record the scorer's fields.


# %%
@dataclass(frozen=True)
class LargeValues:
    """Keep tokens whose value vectors are long."""

    window: int = 8

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        return LayerScores(layer.values[:, : -self.window].float().norm(dim=-1))


method = EvictionMethod(LargeValues(), UniformAllocator())
print(method.scorer(layer).scores.shape)

# %% [markdown]
# ## An H2O-like score
#
# H2O (Zhang et al. 2023) keeps the tokens that have received most attention so far, and recent ones. Here the sum is
# over the last 32 queries, which are also the recent tokens. The original H2O sums over all queries, and continues to
# evict while it decodes. Query heads kG … kG+G−1 share KV head k: `group_mean` averages over them.


# %%
@dataclass(frozen=True)
class HeavyHitters:
    """Attention received from the last `window` queries, summed, separately for each KV head."""

    window: int = 32

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        received = layer.window_attention(self.window)[..., : -self.window].sum(1)
        return LayerScores(group_mean(received, layer.kv_heads))


def heavy_hitters(context):
    """Build the method for a model. `context` has its shape, its calibration and the run's settings."""
    return EvictionMethod(HeavyHitters(), UniformAllocator())


# %% [markdown]
# ## Run the conformance checks
#
# The checks use tiny random models and take seconds. They cover exact budgets, the window, sorted and unique positions,
# leaks between prompts, the grouping of query heads, and equal tokens on both paths through the engine.

# %%
print(check(heavy_hitters, budget=64))


# %% [markdown]
# An example of a mistake: query heads are assigned to KV heads in turns instead of in groups. All shapes and counts are
# still right.


# %%
@dataclass(frozen=True)
class WrongGroups(HeavyHitters):
    def __call__(self, layer: LayerPrefill) -> LayerScores:
        received = layer.window_attention(self.window)[..., : -self.window].sum(1)
        return LayerScores(received.unflatten(0, (-1, layer.kv_heads)).mean(0))


print(check(lambda context: EvictionMethod(WrongGroups(), UniformAllocator()), budget=64))

# %% [markdown]
# ## In your own `generate`

# %%
ids = sample.ids[None]
with compressed(loaded.model, heavy_hitters(None), budget=64) as cache:
    output = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=20)
print(loaded.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

# %% [markdown]
# ## Compare with other methods
#
# All methods and budgets of a prompt share its prefill and decode as one batch.

# %%
methods = {"large values": method, "H2O-like": heavy_hitters(None)}
for name in ("streaming_llm", "snapkv", "compresskv"):
    methods[name] = method_for(loaded.model, name)
places = [(name, budget) for name in methods for budget in (64, 128)]
settings = [Setting(methods[name], budget) for name, budget in places]
rows = []
with attached(loaded.model, loaded.backend):
    for id in task.sample_ids:
        sample = task.sample(id)
        generations = generate(loaded.model, sample.ids, settings, sample.stopping)
        for (name, budget), generation in zip(places, generations, strict=True):
            text = loaded.tokenizer.decode(generation.tokens, skip_special_tokens=True)
            rows.append({"method": name, "budget": budget, "id": id, **sample.score(text)})
scores = pd.DataFrame(rows)
means = scores.pivot_table(index="method", columns="budget", values="score", sort=False)
means.round(1)

# %%
axis = means.plot.barh(figsize=(7, 3.5), color=["lightsteelblue", "steelblue"])
axis.invert_yaxis()
axis.set_xlim(0, 100)
axis.set_xlabel(f"score (ROUGE-1 recall), mean of {len(task.sample_ids)} prompts")
plt.tight_layout()
plt.show()

# %% [markdown]
# **Do not conclude** from six prompts that one method is better than another.
#
# ## Give it a name
#
# Put the scorer into your own module, with a function that makes it. The typed keyword arguments of this function are
# the parameters of the method:
#
# ```python
# # my_methods/heavy_hitters.py
# def scorer(context: Context, *, window: Annotated[int, Ge(1)]) -> HeavyHitters:
#     return HeavyHitters(window)
# ```
#
# and name it in a YAML:
#
# ```yaml
# # my_conf/method/heavy_hitters.yaml
# defaults:
#   - allocator: uniform
#   - _self_
# name: heavy_hitters
# scorer:
#   _target_: my_methods.heavy_hitters.scorer
#   window: 32
# plain:
#   scorer: my_methods.heavy_hitters.scorer
#   allocator: baselines.uniform.allocator
# ```
#
# Then you can use it like the other methods:
#
# ```
# python -m evals conformance --config-dir=my_conf method=heavy_hitters
# python run.py --config-dir=my_conf method=heavy_hitters budget=128
# python run.py --config-dir=my_conf method=heavy_hitters method/allocator=layer_error   # with CompressKV's budgets
# ```
