"""The tables and figures of the paper that are made from results: how each names its rows, and what it compares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compresskv.errors import UserError
from evals.report.labels import (
    calibration_label,
    heads_label,
    layers_label,
    method_label,
    observation_label,
    ranking_label,
)
from evals.results.record import Record

BETTER = "in favour of {better}"


@dataclass(frozen=True)
class Item:
    """A table or figure, named as its experiment in `conf/experiment`.

    `source`: what it is made from: the settings of results/runs, or what a measurement left. `columns` of settings:
    scores by task and length, tokens kept by layer, scores by needle and haystack, or by masked heads. `groups` of
    LongBench's categories are columns instead of its tasks. `pairs` are compared, (first, second) by label; where there
    are none, every method with `subject`, unless nothing is `tested`; `finding` is how a shown difference reads.
    `label` names a row by its record.
    """

    title: str
    subject: str = "CompressKV"
    pairs: tuple[tuple[str, str], ...] = ()
    figure: Literal["curve", "heatmap", "layers", "masked"] | None = None
    columns: Literal["scores", "layers", "needles", "masked"] = "scores"
    label: Callable[[Record], str] = method_label
    source: Literal["runs", "efficiency", "attention", "calibrations"] = "runs"
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tested: bool = True
    finding: str = BETTER


def _observations() -> tuple[tuple[str, str], ...]:
    """CompressKV against SnapKV with equal observation, and each against itself as the paper observes."""
    pairs = []
    for window in (8, 16, 32):
        for pooling in ("average", "max"):
            here = f"window {window}, {pooling} pooling"
            pairs.append((f"SnapKV, {here}", f"SnapKV + semantic heads, {here}"))
            if here != PAPER:
                pairs += [(f"{method}, {PAPER}", f"{method}, {here}") for method in OBSERVED]
    return tuple(pairs)


PAPER = "window 8, average pooling"
OBSERVED = ("SnapKV", "SnapKV + semantic heads")

ITEMS = {
    "table1_longbench": Item("LongBench (Tables 1 and 5, Fig. 4)", figure="curve"),
    "table2_heads": Item("How many semantic heads select (Table 2)", "top-4 heads", label=heads_label),
    "table3_components": Item("Components of CompressKV (Table 3)", "SnapKV"),
    "fig1_attention": Item("Attention of three kinds of heads (Fig. 1)", source="attention", tested=False),
    "fig5_niah": Item("Needle in a haystack (Figs. 5, 6, 13–22)", figure="heatmap"),
    "fig7_masking": Item(
        "Masking retrieval heads (Figs. 7, 23)",
        pairs=(
            ("random heads", "semantic heads"),
            ("random heads", "traditional heads"),
            ("traditional heads", "semantic heads"),
        ),
        figure="masked",
        columns="masked",
        finding="masking {worse} costs more",
    ),
    "fig8_efficiency": Item("Latency and memory over the prompt (Fig. 8)", source="efficiency", tested=False),
    "fig9_budgets": Item("Tokens kept by layer (Figs. 9, 10)", figure="layers", columns="layers", tested=False),
    "fig11_heads": Item("Scores of traditional and semantic heads (Figs. 11, 12)", source="calibrations", tested=False),
    "v2_table1_models": Item("LongBench by model (second version, Table 1)"),
    "v2_fig5_niah": Item("Needle accuracy over the budget (second version, Fig. 5)", figure="curve"),
    "v2_table2_selector": Item(
        "Traditional and semantic heads (second version, Table 2)", "traditional heads", label=ranking_label
    ),
    "v2_fig6_efficiency": Item(
        "Memory, latency and throughput over budgets (second version, Fig. 6)", source="efficiency", tested=False
    ),
    "v2_fig9_plugin": Item(
        "HeadKV and AdaKV with semantic heads (second version, Fig. 9)",
        pairs=(
            ("HeadKV", "HeadCompressKV"),
            ("AdaKV", "AdaCompressKV"),
            ("AdaKV", "AdaCompressKV, uniform layers"),
            ("AdaCompressKV, uniform layers", "AdaCompressKV"),
        ),
        figure="curve",
        label=layers_label,
    ),
    "calibration_leakage": Item(
        "Layer errors from held-out needles and from LongBench",
        "CompressKV, calibration held_out",
        label=calibration_label,
    ),
    "window_pooling": Item("Observation window and pooling", pairs=_observations(), label=observation_label),
    "beyond_retrieval": Item(
        "Beyond retrieval: LongBench by kind of task, and fidelity to the full cache",
        figure="curve",
        groups={
            "QA": ("single-doc QA", "multi-doc QA"),
            "summaries": ("summarization",),
            "few-shot": ("few-shot",),
            "code": ("code",),
        },
    ),
    "needles": Item("Other needles, another haystack", columns="needles"),
}
"""By the name of their experiment."""

ALL = Item("all methods")
"""Everything of a results tree: rows by method and budget; CompressKV is compared with every other of its budget."""


def item(name: str) -> Item:
    """The item of that name. Raises `UserError`, with all names, if there is none."""
    if name not in ITEMS:
        raise UserError(
            "experiment", f"choose one of {', '.join(ITEMS)}", value=name, why="it has no artefacts made from results"
        )
    return ITEMS[name]
