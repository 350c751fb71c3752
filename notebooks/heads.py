# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where are the semantic heads?
#
# CompressKV lets a few heads of each layer choose the tokens: those that attend to an answer's whole span while the
# model writes it. Their scores were measured once, on needles that no evaluation uses, and ship with the default model.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from compresskv import calibration
from evals.compose import job
from evals.results import frame
from evals.running.sweep import run
from evals.tables.statistics import difference

made = calibration.find("smollm2-135m", "held_out")
semantic = np.array(made.scores("semantic"))
traditional = np.array(made.scores("traditional"))
print(f"{sum(made.accepted.values())} answered prompts; {semantic.shape[0]} layers of {semantic.shape[1]} query heads")

# %% [markdown]
# ## Score maps
#
# A traditional retrieval head has its highest attention on the very token that is copied next; a semantic one
# attends to the answer anywhere in its span. Each map has its own scale, because the two scores have different units.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 6), layout="constrained", sharey=True)
for axis, scores, title in zip(axes, (semantic, traditional), ("semantic", "traditional"), strict=True):
    image = axis.imshow(scores, cmap="cividis", aspect="auto")
    axis.set_title(f"{title} score")
    axis.set_xlabel("query head")
    axis.set_xticks(range(scores.shape[1]))
    figure.colorbar(image, ax=axis)
    for layer in range(len(scores)):
        axis.plot(scores[layer].argmax(), layer, marker="o", markersize=4, color="white", markeredgecolor="black")
axes[0].set_ylabel("layer")
figure.suptitle("Score of every query head; circles: the best of each layer")
plt.show()

# %% [markdown]
# ## Few heads have most of the score
#
# The curves sort all heads of the model by score. A diagonal would mean that all heads are alike.

# %%
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
for scores, title, style in ((semantic, "semantic", "-"), (traditional, "traditional", "--")):
    shares = np.sort(scores.ravel())[::-1].cumsum() / scores.sum()
    axis.plot(np.arange(1, shares.size + 1), shares, style, label=title)
axis.plot([0, semantic.size], [0, 1], color="grey", linewidth=1, linestyle=":", label="all heads alike")
axis.set_xlabel("heads, best first")
axis.set_ylabel("share of the total score")
axis.legend()
plt.show()

# %%
best = {}
for name, scores in (("semantic", semantic), ("traditional", traditional)):
    best[name] = set(np.argsort(-scores.ravel(), kind="stable")[:20].tolist())
agree = int((semantic.argmax(1) == traditional.argmax(1)).sum())
print(f"{len(best['semantic'] & best['traditional'])} of the best 20 heads are among the best 20 of both scores")
print(f"{agree} of {len(semantic)} layers have the same best head by both scores")

# %% [markdown]
# ## Masking
#
# If these heads do the retrieval, the model should fail without them. While the answer is decoded, the chosen heads
# attend to all tokens equally; the same number of random heads is the control. The counts are shares of the paper's
# 1,024 heads, scaled to this model. Here: two needles, one short length, two random draws.

# %%
scratch = tempfile.TemporaryDirectory()
results = Path(scratch.name)
masking = ["eval=head_masking", "method=full", "eval.lengths=[400]", "eval.depths=3", "eval.needles=2"]
masking += ["eval.masked=[0,10,30]", "eval.draws=2", "eval.max_new_tokens=20", f"paths.results={results}"]
run([job(*masking)])

# %%
samples = frame(results, by="sample")
means = samples.groupby(["ranking", "masked"])["score"].mean().unstack("ranking")
means.round(1)

# %%
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, marker in (("semantic", "o"), ("traditional", "s"), ("random", "^")):
    line = pd.concat([means.loc[[0], "none"], means[name].dropna()])
    axis.plot(line.index, line, marker=marker, label=name)
axis.set_xlabel(f"masked heads of {semantic.size}")
axis.set_ylabel("score (ROUGE-1 recall)")
axis.set_ylim(-5, 105)
axis.legend(title="masked heads")
plt.show()

# %% [markdown]
# Every point uses the same prompts, so the comparison is paired: for each prompt, the score with semantic heads masked
# minus the mean over the random draws.

# %%
most = samples["masked"].max()
by_prompt = samples[samples["masked"] == most].groupby(["id", "ranking"])["score"].mean().unstack("ranking")
rows = {}
for name in ("semantic", "traditional"):
    found = difference(by_prompt["random"], by_prompt[name])
    rows[f"{name} − random"] = {"difference": found.mean, "p": found.p, "n": found.n, "samples needed": found.needed}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# **Do not conclude** which of the two rankings is better. There are only six prompts and two random draws, and six
# paired prompts cannot give a p-value below 2/64. This command runs more of both:
# `python run.py eval=head_masking method=full eval.needles=5`.
