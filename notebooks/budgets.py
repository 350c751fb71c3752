# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Layer errors and layer budgets
#
# A budget is the mean number of tokens that a layer keeps. CompressKV gives more to layers whose output suffers more
# from eviction. PyramidKV gives more to lower layers, and CAKE to layers with dispersed, shifting attention. SnapKV
# gives every layer the same budget.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from compresskv import Setting, Stopping, attached, calibration, generate, load
from compresskv.methods import method_for
from evals.compose import job

BUDGETS = (64, 128, 256, 512)
METHODS = {"compresskv": "CompressKV", "pyramidkv": "PyramidKV", "cake": "CAKE", "snapkv": "uniform"}

# %% [markdown]
# ## Layer errors
#
# The error of a layer shows how far its output moves if its cache keeps only the 32 tokens of its semantic heads.
# It is a share of the sum over all layers, and was measured once, on held-out needles.

# %%
made = calibration.find("smollm2-135m", "held_out")
errors = np.array(made.layer_scores)
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.bar(range(len(errors)), errors)
axis.axhline(1 / len(errors), color="black", linestyle="--", linewidth=1, label="all layers alike")
axis.set_xlabel("layer")
axis.set_ylabel("share of the error")
axis.legend()
plt.show()

# %% [markdown]
# ## Layer budgets on one prompt
#
# One prefill serves all sixteen settings; only what is kept differs. CompressKV's and PyramidKV's budgets do not
# depend on the text, CAKE's do.

# %%
needles = job("eval=niah", "eval.lengths=[1000]", "eval.depths=[50]")
loaded = load(needles.model)
task = needles.eval.make_tasks(loaded, needles.protocol)[0]
sample = task.sample(task.sample_ids[0])
methods = {name: method_for(loaded.model, name) for name in METHODS}
places = [(name, budget) for budget in BUDGETS for name in METHODS]
settings = [Setting(methods[name], budget) for name, budget in places]
with attached(loaded.model, loaded.backend):
    generations = generate(loaded.model, sample.ids, settings, Stopping(1))

# %%
rows = []
for (name, budget), generation in zip(places, generations, strict=True):
    for layer, heads in enumerate(generation.kept):
        rows.append({"method": METHODS[name], "budget": budget, "layer": layer, "kept": np.mean(heads)})
kept = pd.DataFrame(rows)

figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex=True)
for axis, budget in zip(axes.flat, BUDGETS, strict=True):
    for name, style in zip(METHODS.values(), ("-", "--", "-.", ":"), strict=True):
        of_method = kept[(kept["method"] == name) & (kept["budget"] == budget)]
        axis.step(of_method["layer"], of_method["kept"], style, where="mid", label=name)
    axis.set_title(f"budget {budget}")
    axis.set_ylim(bottom=0)
axes[0, 0].legend()
figure.supxlabel("layer")
figure.supylabel("tokens kept per KV head")
plt.show()

# %% [markdown]
# The means agree to the token: all methods use the same memory. They differ in the spread over layers.
# (At 512, PyramidKV gives every layer the same, because the prompt has fewer than about twice the budget's tokens.)

# %%
kept.groupby(["budget", "method"])["kept"].agg(["mean", "min", "max"]).round(1)

# %% [markdown]
# Rank correlations over layers between the budgets of other methods and the errors that CompressKV measured. Uniform
# budgets have no correlation.

# %%
wide = kept.pivot_table(index="layer", columns=["method", "budget"], values="kept")
wide.loc[:, wide.nunique() > 1].corrwith(pd.Series(errors), method="spearman").unstack("budget").round(2)

# %% [markdown]
# **Do not conclude** that budgets closer to the errors give better answers: no answer was scored here. Layer errors and
# CAKE's preferences are from one model, and CAKE's from a single prompt.
