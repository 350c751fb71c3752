"""The tables and figures of the paper that are made from results: how each names its rows, and what it compares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compresskv.errors import UserError
from evals.report.labels import calibration_label, heads_label, method_label, ranking_label


@dataclass(frozen=True)
class Item:
    """A table or figure, named as its experiment in `conf/experiment`.

    `columns`: scores by task and length, or tokens kept by layer. `pairs` are compared, (first, second) by label; where
    there are none, every method with `subject`. `label` names a row by the method and the configuration of a result.
    """

    title: str
    subject: str = "CompressKV"
    pairs: tuple[tuple[str, str], ...] = ()
    figure: Literal["curve", "heatmap", "layers"] | None = None
    columns: Literal["scores", "layers"] = "scores"
    label: Callable[[str, Mapping[str, Any]], str] = method_label


ITEMS = {
    "table1_longbench": Item("LongBench (Tables 1 and 5, Fig. 4)", figure="curve"),
    "table2_heads": Item("How many semantic heads select (Table 2)", "top-4 heads", label=heads_label),
    "table3_components": Item("Components of CompressKV (Table 3)", "SnapKV"),
    "fig5_niah": Item("Needle in a haystack (Figs. 5, 6, 13–22)", figure="heatmap"),
    "fig9_budgets": Item("Tokens kept by layer (Figs. 9, 10)", figure="layers", columns="layers"),
    "v2_table1_models": Item("LongBench by model (second version, Table 1)"),
    "v2_fig5_niah": Item("Needle accuracy over the budget (second version, Fig. 5)", figure="curve"),
    "v2_table2_selector": Item(
        "Traditional and semantic heads (second version, Table 2)", "traditional heads", label=ranking_label
    ),
    "v2_fig9_plugin": Item(
        "HeadKV and AdaKV with semantic heads (second version, Fig. 9)",
        pairs=(("HeadKV", "HeadCompressKV"), ("AdaKV", "AdaCompressKV")),
        figure="curve",
    ),
    "calibration_leakage": Item(
        "Layer errors from held-out needles and from LongBench",
        "CompressKV, calibration held_out",
        label=calibration_label,
    ),
    "window_pooling": Item("Observation window and pooling"),
    "beyond_retrieval": Item("Beyond retrieval: LongBench by category", figure="curve"),
}
"""By the name of their experiment."""


def item(name: str) -> Item:
    """The item of that name. Raises `UserError`, with all names, if there is none."""
    if name not in ITEMS:
        raise UserError(f"experiment={name}: has no artefacts made from results: choose one of {', '.join(ITEMS)}")
    return ITEMS[name]
