# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model: calibrate, sweep, report
#
# `model.path=<directory>` uses any decoder-only model that `save_pretrained` wrote. In this notebook, your model is the
# default model, saved under another name.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown

from compresskv import calibration, load
from evals.compose import job
from evals.report.artefacts import page_of, write
from evals.report.markdown import markdown
from evals.results import frame
from evals.running.sweep import run

scratch = tempfile.TemporaryDirectory()
directory = Path(scratch.name) / "my-model"
results = Path(scratch.name) / "results"

loaded = load(job("model=smollm2-135m").model)
loaded.model.save_pretrained(directory)
loaded.tokenizer.save_pretrained(directory)
del loaded
sorted(path.name for path in directory.iterdir())

# %% [markdown]
# ## Calibrate
#
# SnapKV and most other methods need no calibration. CompressKV needs the semantic heads and layer errors of the model,
# measured once on needles that the model answers. The default is 150 prompts; here five short ones are used, and the
# file is written next to the model. Without `eval.output` it goes to your cache, where `model.path=` finds it by name.

# %%
model = f"model.path={directory}"
small = ["eval.lengths=[300]", "eval.depths=1", "eval.max_steps=30", "eval.head_counts=[1,3]"]
run([job(model, "eval=calibrate", *small, f"eval.output={scratch.name}", f"paths.results={results}")])
file = Path(scratch.name) / "my-model.held_out.json"
made = calibration.load(file)
print(f"{made.model}: {sum(made.accepted.values())} prompts answered, {made.heads} head(s) a layer choose")

# %%
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.bar(range(len(made.layer_scores)), made.layer_scores, label="this calibration")
shipped = calibration.find("smollm2-135m", "held_out")
axis.plot(shipped.layer_scores, "k_", markersize=10, label="the one that ships, from more and longer prompts")
axis.set_xlabel("layer")
axis.set_ylabel("share of the error")
axis.legend()
plt.show()

# %% [markdown]
# ## Sweep

# %%
task = ["eval=niah", "eval.lengths=[400]", "eval.depths=3", "eval.needles=2", "eval.max_new_tokens=20"]
jobs = []
for method in ("snapkv", "compresskv"):
    for allocator in ("uniform", "layer_error"):
        setting = [f"method={method}", f"method/allocator={allocator}", "budget=64"]
        jobs.append(job(model, *task, *setting, f"calibration={file}", f"paths.results={results}"))
run(jobs)

# %%
frame(results)[["model", "setting", "score", "low", "high", "n", "realised_budget"]].round(1)

# %% [markdown]
# ## Report
#
# Every experiment of `conf/experiment` can also report any results tree that has its settings; this one is Table 3.

# %%
Markdown(markdown(page_of("table3_components", results)))

# %%
for path in write("table3_components", results):
    print(path.relative_to(results))

# %% [markdown]
# **Do not conclude** anything about the components from six prompts, or that five calibration prompts are enough. The
# same from the command line: `python run.py eval=calibrate model.path=<directory>`, then
# `python run.py -m experiment=table3_components +size=smoke model.path=<directory>`.
