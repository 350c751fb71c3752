# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations with paired tests
#
# What does each part of CompressKV contribute? Every setting sees the same prompts, so settings are compared prompt by
# prompt, and the p-values of a table are corrected for their number (Holm).

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from evals.compose import job
from evals.results.compare import comparisons
from evals.results.record import records
from evals.running.sweep import run

scratch = tempfile.TemporaryDirectory()
results = Path(scratch.name)

# %% [markdown]
# ## One sweep
#
# The settings are those of a command line: `method=snapkv method/allocator=layer_error` is SnapKV's scores with
# CompressKV's layer budgets. Three result trees keep the questions apart; they share every prefill all the same, since
# the prompt's pass depends on no setting. Here: three needles, one short length, four depths.

# %%
TASK = ["eval=niah", "eval.lengths=[400]", "eval.depths=4", "eval.needles=3", "eval.max_new_tokens=20"]
BUDGET = 64

sweeps = {
    "components": [
        ["method=snapkv"],
        ["method=compresskv", "method/allocator=uniform"],
        ["method=snapkv", "method/allocator=layer_error"],
        ["method=compresskv"],
    ],
    "heads": [
        ["method=compresskv", "method/allocator=uniform", f"method.scorer.heads={heads}"] for heads in (1, 2, 3, 6, 9)
    ],
    "window": [],
}
for window in (8, 16, 32):
    for pooling in ("average", "max"):
        sweeps["window"].append(
            ["method=snapkv", f"observation.window={window}", f"observation.pooling={pooling}"],
        )

jobs = []
for name, settings in sweeps.items():
    jobs += [job(*TASK, *setting, f"budget={BUDGET}", f"paths.results={results / name}") for setting in settings]
run(jobs)


# %% [markdown]
# ## Reading it
#
# Of each tree: the mean of every setting with its 95 % bootstrap interval, and groups: settings that share a letter
# cannot be told apart.


# %%
def compared(name):
    """The comparison of all settings of one tree, on the samples that all of them have."""
    (comparison,) = comparisons(records(results / name), "score")
    return comparison


def means(comparison):
    rows = []
    for setting in comparison.values:
        low, high = comparison.interval(setting)
        row = {"setting": setting, "mean": comparison.mean(setting), "low": low, "high": high}
        rows.append({**row, "groups": comparison.letters(setting)})
    return pd.DataFrame(rows).set_index("setting")


def pairs(comparison):
    rows = []
    for pair in comparison.pairs:
        found = pair.difference
        row = {"first": pair.first, "second": pair.second, "second − first": found.mean, "n": found.n}
        rows.append({**row, "corrected p": pair.p, "differs": pair.differs, "samples needed": found.needed})
    return pd.DataFrame(rows).sort_values("corrected p", kind="stable").reset_index(drop=True)


def draw(comparison):
    table = means(comparison)[::-1]
    _, axis = plt.subplots(figsize=(7, 0.45 * len(table) + 1), layout="constrained")
    errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
    axis.barh(table.index, table["mean"], xerr=errors, color="lightsteelblue", ecolor="black", capsize=3)
    for place, letters in enumerate(table["groups"]):
        axis.text(1, place, letters, va="center")
    axis.set_xlim(0, 100)
    axis.set_xlabel("score (ROUGE-1 recall), mean and 95 % interval")
    plt.show()


# %% [markdown]
# ## Components
#
# From SnapKV to CompressKV: semantic heads, layer budgets, both.

# %%
components = compared("components")
draw(components)

# %%
pairs(components).round(3)

# %% [markdown]
# ## How many heads choose
#
# One to all nine query heads of a layer, with uniform budgets.

# %%
heads = compared("heads")
draw(heads)

# %%
pairs(heads).head(5).round(3)

# %% [markdown]
# ## Observation window and pooling
#
# SnapKV only: a calibration is made for one window and pooling, and CompressKV refuses one that was made for others.

# %%
windows = compared("window")
draw(windows)

# %%
pairs(windows).head(5).round(3)

# %% [markdown]
# **Not to be concluded:** that settings are equal where no difference shows. There are 12 prompts, of three needles.
# `samples needed` says how many would separate two settings in four of five experiments, if the differences stay as
# they are here. `conf/experiment` has the full sweeps: `table2_heads`, `table3_components`, `window_pooling`.
