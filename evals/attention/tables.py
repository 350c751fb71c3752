"""Tables and figures of single heads' attention over a prompt, from the files in results/attention."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from typing_extensions import TypedDict

from compresskv.checking import MaxLen, MinLen
from compresskv.checking import Name as PlainName
from compresskv.protocol import label_stem
from evals.files import loads
from evals.results.means import Cells, filled
from evals.results.schema import Count, Label, Number, exactly, misfit
from evals.tables.methods import Name
from evals.tables.table import Cell, Metric, Row, Shown, Table
from evals.tables.text import left_out

if TYPE_CHECKING:
    from pandas import DataFrame

FLOOR = 1e-4
"""The smallest attention that the figure shows."""

ELSEWHERE = "elsewhere"
"""Column for all other tokens, including the tokens of the answer."""

Step = Annotated[list[Number], MinLen(1)]


@exactly
class Ranks(TypedDict):
    traditional: Count
    semantic: Count


@exactly
class Head(TypedDict):
    kind: Label
    layer: Count
    head: Count
    ranks: Ranks
    attention: Step
    by_step: dict[str, Step]


@exactly
class Prompt(TypedDict):
    """The observations on one prompt (`evals.attention.evaluation.description`)."""

    model: PlainName
    protocol: Label
    sample: PlainName
    answer: str
    prompt_tokens: Count
    tokens: list[str]
    parts: dict[str, Annotated[list[Count], MinLen(2), MaxLen(2)]]
    heads: Annotated[list[Head], MinLen(1)]


def shown(results: Path, methods: Sequence[str]) -> Shown:
    """Return a table and a figure for every prompt."""
    prompts, faults = _prompts(results)
    figures = {
        f"figure-{prompt['model']}-{label_stem(prompt['protocol'])}-{prompt['sample']}": partial(_draw, prompt)
        for prompt in prompts
    }
    notes = [_note(prompt) for prompt in prompts] + left_out(faults)
    frames = {"attention": partial(_frame, prompts)}
    return Shown([_table(prompt) for prompt in prompts], notes=notes, frames=frames, figures=figures)


def _prompts(results: Path) -> tuple[list[Prompt], list[str]]:
    """Return the contents of all valid files, in order of their paths, and a message for each invalid file."""
    prompts: list[Prompt] = []
    faults: list[str] = []
    for path in sorted((results / "attention").glob("*/*.json")):
        try:
            prompt = loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            faults.append(f"{path.relative_to(results)}: cannot be read ({error})")
            continue
        if fault := misfit(Prompt, prompt) or _contradiction(prompt):
            faults.append(f"{path.relative_to(results)}: {fault}")
        else:
            prompts.append(prompt)
    return prompts, faults


def _contradiction(prompt: Prompt) -> str:
    """Return how the lists of a prompt contradict each other; "" if they are consistent."""
    if "needle" not in prompt["parts"]:
        return "parts has no needle"
    for head in prompt["heads"]:
        if len(head["attention"]) != len(prompt["tokens"]):
            return "a head's attention does not have one value per prompt token"
        if not set(prompt["parts"]) <= set(head["by_step"]) or len(set(map(len, head["by_step"].values()))) > 1:
            return "a head's by_step does not fit the prompt's parts"
    return ""


def _table(prompt: Prompt) -> Table:
    """Return a table with a row per head and a column per part of the prompt; cells average over decode steps."""
    parts = list(prompt["parts"])
    rows: list[Row] = []
    by_column: list[Cells] = []
    for head in prompt["heads"]:
        in_parts = np.array([head["by_step"][part] for part in parts])
        cells: Cells = {}
        for part, of_steps in zip([*parts, ELSEWHERE], [*in_parts, 1 - in_parts.sum(0)], strict=True):
            cells[part] = Cell(
                {"steps": {(f"step {step}", ""): 100 * float(share) for step, share in enumerate(of_steps)}}
            )
        rows.append(Row(Name(_label(head), None, prompt["protocol"])))
        by_column.append(cells)
    title = f"{prompt['protocol']} {prompt['sample']}, share of attention in % while answering"
    metric = Metric("attention", title, better=None)
    shown = filled(rows, by_column, metric)
    return Table(prompt["model"], "attention", [*parts, ELSEWHERE], shown, metric, average="")


def _label(head: Head) -> str:
    return f"{head['kind']} head, layer {head['layer']}, head {head['head']}"


def _note(prompt: Prompt) -> str:
    ranks = [
        f"{_label(head)} has rank {head['ranks']['traditional']} by traditional scores and rank "
        f"{head['ranks']['semantic']} by semantic scores"
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
    """Return a frame with a row for every prompt token and head: the mean attention over decode steps."""
    import pandas as pd

    frames = []
    for prompt in prompts:
        for head in prompt["heads"]:
            place: dict[str, Any] = {"model": prompt["model"], "protocol": prompt["protocol"]}
            place |= {"sample": prompt["sample"], "kind": head["kind"], "layer": head["layer"], "head": head["head"]}
            tokens = prompt["tokens"]
            place |= {"position": range(len(tokens)), "token": tokens, "attention": head["attention"]}
            frames.append(pd.DataFrame(place))
    return pd.concat(frames, ignore_index=True)


def _draw(prompt: Prompt) -> Any:
    """Draw a panel for each head: mean attention by position on a log scale, with the needle's answer shaded."""
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
