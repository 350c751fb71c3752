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
# What does each part of CompressKV contribute? All settings use the same prompts, so settings are compared prompt by
# prompt. The p-values of a table are Holm-corrected for their number.

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
# ## A sweep and how to read it
#
# Settings are written as on the command line: `method=snapkv method/allocator=layer_error` is SnapKV's scores with
# CompressKV's layer budgets. A sweep prefills each prompt once for all its settings, so all settings of this
# notebook are one sweep. Here: three needles, one short length, three depths. Each table has its own results tree.
#
# `means` has the mean of every setting with its 95 % bootstrap interval, and groups: settings that share a letter
# cannot be separated. `pairs` has the paired differences.

# %%
TASK = ["eval=niah", "eval.lengths=[400]", "eval.depths=3", "eval.needles=3", "eval.max_new_tokens=20"]
BUDGET = 64


def jobs(table, settings):
    """Return the jobs of a table. `settings` are lists of overrides."""
    return [job(*TASK, *setting, f"budget={BUDGET}", f"paths.results={results / table}") for setting in settings]


def compared(settings):
    """Compare these records on the samples that all of them have."""
    (comparison,) = comparisons(settings, "score")
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
    _, axis = plt.subplots(figsize=(8, 0.45 * len(table) + 1), layout="constrained")
    errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
    axis.barh(table.index, table["mean"], xerr=errors, color="lightsteelblue", ecolor="black", capsize=3)
    for place, letters in enumerate(table["groups"]):
        axis.text(1, place, letters, va="center")
    axis.set_xlim(0, 100)
    axis.set_xlabel("score (ROUGE-1 recall), mean and 95 % interval; letters: groups")
    plt.show()


# %% [markdown]
# ## What is run
#
# - **Components**, from SnapKV to CompressKV: semantic heads, layer budgets, both.
# - **How many heads choose**: one to all nine query heads of a layer, with uniform budgets.
# - **Observation window and pooling**, of SnapKV only: a calibration is made for one window and pooling, and CompressKV
#   refuses one that was made for others.

# %%
snapkv, compresskv = "method=snapkv", "method=compresskv"
uniform, layer_error = "method/allocator=uniform", "method/allocator=layer_error"
components = [[snapkv], [compresskv, uniform], [snapkv, layer_error], [compresskv]]
heads = [[compresskv, uniform, f"method.scorer.heads={number}"] for number in (1, 2, 4, 9)]
windows = []
for window in (8, 16, 32):
    for pooling in ("average", "max"):
        if (window, pooling) != (8, "average"):  # the default, which is among the components
            windows.append([snapkv, f"observation.window={window}", f"observation.pooling={pooling}"])

run([*jobs("components", components), *jobs("heads", heads), *jobs("windows", windows)])

# %% [markdown]
# ## Components

# %%
of_components = compared(records(results / "components"))
draw(of_components)

# %%
pairs(of_components).round(3)

# %% [markdown]
# ## How many heads choose

# %%
of_heads = compared(records(results / "heads"))
draw(of_heads)

# %%
pairs(of_heads).round(3)

# %% [markdown]
# ## Observation window and pooling

# %%
of_windows = compared(records(results / "windows") + records(results / "components", "/snapkv/"))
draw(of_windows)

# %%
pairs(of_windows).head(5).round(3)

# %% [markdown]
# **Do not conclude** that settings are equal if no difference is shown. There are only nine prompts of three needles.
# `samples needed` is the number of samples that would separate two settings in four of five experiments, if the
# differences stay as they are here. `conf/experiment` has the full sweeps: `table2_heads`, `table3_components`,
# `window_pooling`.
