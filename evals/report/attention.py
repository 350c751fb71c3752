"""The attention of single heads over a prompt, from what eval=attention left in results/attention."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report import tables
from evals.report.cells import Cell, Grid, Metric, Row
from evals.report.grids import Cells, filled
from evals.report.items import Item
from evals.report.page import Page
from evals.report.selection import nothing
from evals.results.record import Record
from evals.results.store import safe_name

if TYPE_CHECKING:
    from pandas import DataFrame

FLOOR = 1e-4
"""The least attention that the figure shows."""

ELSEWHERE = "elsewhere"
"""The column of all other tokens, those of the answer included."""

Prompt = Mapping[str, Any]
"""What was observed on one prompt (`evals.attention.evaluation.description`)."""


def page(experiment: str, item: Item, results: Path) -> Page:
    """A table and a figure for every prompt. Raises `UserError` where none was observed."""
    prompts = list(_prompts(results))
    if not prompts:
        raise nothing(experiment, results / "attention")
    grids = [_grid(prompt) for prompt in prompts]
    figures = {
        f"figure-{safe_name('model.name', prompt['model'])}-{prompt['protocol']}-{prompt['sample']}": partial(
            _draw, prompt
        )
        for prompt in prompts
    }
    frames = {"table": partial(tables.means, grids), "attention": partial(_frame, prompts)}
    notes = [_note(prompt) for prompt in prompts]
    return Page(experiment, item.title, grids, [], [], notes, frames=frames, figures=figures)


def _prompts(results: Path) -> list[Prompt]:
    """All that are readable, by model, protocol and sample."""
    prompts: list[Prompt] = []
    for path in sorted((results / "attention").glob("*/*.json")):
        try:
            prompt = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(prompt, dict) and prompt.get("heads"):
            prompts.append(prompt)
    return prompts


def _grid(prompt: Prompt) -> Grid:
    """A row for every head, a column for every part of the prompt; a value for every step of the answer."""
    parts = list(prompt["parts"])
    rows: list[tuple[Row, list[Record]]] = []
    by_column: list[Cells] = []
    for head in prompt["heads"]:
        steps = list(zip(*(head["by_step"][part] for part in parts), strict=True))
        shares = {part: [100 * values[place] for values in steps] for place, part in enumerate(parts)}
        shares[ELSEWHERE] = [100 * (1 - sum(values)) for values in steps]
        rows.append((Row(_label(head), None, prompt["protocol"], "", {}), []))
        by_column.append(
            {
                part: Cell({"steps": {(f"step {step}", ""): value for step, value in enumerate(values)}}, 0, 0)
                for part, values in shares.items()
            }
        )
    title = f"{prompt['protocol']} {prompt['sample']}, share of attention in % while answering"
    metric = Metric("attention", title, better=None)
    return Grid(prompt["model"], "attention", [*parts, ELSEWHERE], filled(rows, by_column, metric), metric)


def _label(head: Mapping[str, Any]) -> str:
    return f"{head['kind']} head, layer {head['layer']}, head {head['head']}"


def _note(prompt: Prompt) -> str:
    ranks = [
        f"{_label(head)} is number {head['ranks']['traditional']} by traditional and {head['ranks']['semantic']} by "
        "semantic scores"
        for head in prompt["heads"]
    ]
    answer = " ".join(str(prompt["answer"]).split())
    first, last = prompt["parts"]["needle"]
    place = f"tokens {first} to {last - 1} of {prompt['prompt_tokens']}"
    return (
        f"{prompt['model']}, {prompt['protocol']} {prompt['sample']}: n counts the answer's tokens; the answer was "
        f"“{answer}”; the needle's answer is {place}; {'; '.join(ranks)}."
    )


def _frame(prompts: Sequence[Prompt]) -> "DataFrame":
    """One row for every token of the prompt and head: its mean attention over the answer's steps."""
    import pandas as pd

    rows = []
    for prompt in prompts:
        for head in prompt["heads"]:
            place = {name: prompt[name] for name in ("model", "protocol", "sample")}
            place |= {name: head[name] for name in ("kind", "layer", "head")}
            for position, (token, weight) in enumerate(zip(prompt["tokens"], head["attention"], strict=True)):
                rows.append({**place, "position": position, "token": token, "attention": weight})
    return pd.DataFrame(rows)


def _draw(prompt: Prompt) -> Any:
    """A panel for each head: mean attention over the position, on a log scale, the needle's answer shaded."""
    import matplotlib.pyplot as plt

    heads = prompt["heads"]
    figure, axes = plt.subplots(
        1, len(heads), figsize=(4 * len(heads), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, head in zip(axes[0], heads, strict=True):
        first, last = prompt["parts"]["needle"]
        axis.axvspan(first - 0.5, last - 0.5, color="tab:orange", alpha=0.35, linewidth=0, label="needle's answer")
        weights = [max(weight, FLOOR) for weight in head["attention"]]
        axis.vlines(range(len(weights)), FLOOR, weights, color="tab:blue", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_ylim(FLOOR, 1)
        axis.set_title(_label(head), fontsize=9)
        axis.set_xlabel("token of the prompt")
    axes[0][0].set_ylabel("attention, mean over the answer")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"{prompt['model']}, {prompt['protocol']}, {prompt['sample']}", fontsize=10)
    return figure
