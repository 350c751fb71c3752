# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Results: frames, tables, figures, significance
#
# Everything below is read from a results tree; no model is loaded. A tree has a folder per setting with one line per
# sample and one summary.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown

from evals.report import csv
from evals.report.artefacts import page_of
from evals.report.latex import latex
from evals.report.markdown import markdown
from evals.results import frame
from evals.tables import figures
from evals.tables.statistics import difference
from evals.tables.text import probability

RESULTS = Path("../results/reference")

# %% [markdown]
# Set `RESULTS` to your own tree, such as `../results`. If it has no runs, a small sweep makes some; only this needs the
# model.

# %%
if not (RESULTS / "runs").is_dir():
    import tempfile

    from evals.compose import job
    from evals.running.sweep import run

    print(f"{RESULTS} holds no runs, so a small sweep of needle prompts is run instead.")
    scratch = tempfile.TemporaryDirectory()
    RESULTS = Path(scratch.name)
    task = ["eval=niah", "eval.lengths=[400]", "eval.depths=3", "eval.needles=2", "eval.max_new_tokens=20"]
    settings = [["method=full"]]
    for method in ("streaming_llm", "snapkv", "pyramidkv", "compresskv"):
        settings += [[f"method={method}", f"budget={budget}"] for budget in (48, 96)]
    run([job(*task, *setting, f"paths.results={RESULTS}") for setting in settings])

# %% [markdown]
# ## One row per setting
#
# `score` is the mean, `low` and `high` are its 95 % bootstrap interval, `realised_budget` is the mean number of kept
# tokens.

# %%
settings = frame(RESULTS)
columns = ["eval", "task", "protocol", "setting", "score", "low", "high", "n", "realised_budget", "cache_bytes"]
settings[columns].sort_values("score", ascending=False).head(12).round(1)

# %%
settings.pivot_table(index=["eval", "method"], columns="budget", values="score", dropna=False).round(1)

# %% [markdown]
# ## One row per sample
#
# It has all scores; in your own tree also the prediction and the kept tokens per layer. Samples differ more than the
# mean shows.

# %%
samples = frame(RESULTS, by="sample")
samples = samples[samples["covered"]]
samples[["task", "setting", "id", "score"]].head(6)

# %%
smallest = samples[samples["budget"] == samples["budget"].min()]
methods = sorted(smallest["method"].unique())
figure, axis = plt.subplots(figsize=(7, 0.5 * len(methods) + 1.2), layout="constrained")
for place, method in enumerate(methods):
    scores = smallest.loc[smallest["method"] == method, "score"]
    axis.plot(scores, [place] * len(scores), "|", markersize=12, alpha=0.5, color="C0")
    axis.plot(scores.mean(), place, "D", color="black")
axis.set_yticks(range(len(methods)), methods)
axis.set_xlabel(f"score of each sample at budget {samples['budget'].min()}; diamonds: means")
plt.show()

# %% [markdown]
# ## Table 1
#
# The artefact that `python -m evals report experiment=table1_longbench` writes: means with n and interval, the best
# in bold, paired verdicts, and the paper's numbers, in a separate table if they are not comparable.

# %%
page = page_of("table1_longbench", RESULTS)
Markdown(markdown(page))

# %% [markdown]
# The same in LaTeX:

# %%
print(latex(page).split("\n\n")[1])

# %% [markdown]
# ## Score over budget

# %%
for table in page.tables:
    figures.over_budget(table)
    plt.show()

# %% [markdown]
# ## Significance
#
# Settings of one task see the same prompts, so differences are taken sample by sample. The permutation p-values are
# corrected for all comparisons of the table. `needed` is the number of samples that would show a difference of this
# size.

# %%
csv.comparisons(page.verdicts).round(3)

# %% [markdown]
# Compare any two of your settings:

# %%
task, budget = smallest["task"].iloc[0], smallest["budget"].iloc[0]
paired = smallest[smallest["task"] == task].pivot_table(index="sample", columns="method", values="score").dropna(axis=1)
first, second = paired.columns[0], paired.columns[-1]
found = difference(paired[first], paired[second])
low, high = found.interval
print(f"{task}, budget {budget}: {second} − {first} = {found.mean:.1f} [{low:.1f}, {high:.1f}], n = {found.n}")
print(f"p: {probability(found.p)}, before any correction")

# %% [markdown]
# **Do not conclude** that two settings are equal because no difference is shown. Do not trust a p-value that was picked
# from many: `csv.comparisons` corrects for their number; `difference` of two columns cannot.
