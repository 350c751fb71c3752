"""Define the table or figure of each experiment in `conf/experiment`: the labels of its rows, and its comparisons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from compresskv import calibration
from compresskv.methods import named_method
from compresskv.selecting_heads import Heads
from evals.results.record import Record
from evals.tables.compare import Question
from evals.tables.methods import named


@dataclass(frozen=True)
class Item(Question):
    """A table or figure of the experiment with the same name in `conf/experiment`.

    `source` is the evaluation whose measurements it shows; "" means the settings of results/runs, with the columns of
    `view` (`Asked`). `label` returns the label of a record's row. `figure` is drawn as lines over the budget
    ("budgets") or over the columns ("columns"), or by the evaluation ("own").
    """

    title: str
    figure: Literal["budgets", "columns", "own"] | None = None
    view: str = ""
    label: Callable[[Record], str] = lambda record: named(record.method)
    source: str = ""


def heads_label(record: Record) -> str:
    """Label a record with the number of retrieval heads per layer that select, as in the paper's Table 2."""
    heads = selecting_heads(record)
    return "number of heads unknown" if heads is None else f"top-{heads} heads"


def selecting_heads(record: Record) -> int | None:
    """Return the number of heads per layer that selected; None if the method's scorer has no such number."""
    built = (record.summary or {}).get("method_in_full")
    scorer = _node(_node(built).get("EvictionMethod")).get("scorer")
    for fields in _node(scorer).values():
        by_layer = _node(fields).get("heads")
        ranking = _node(_node(fields).get("ranking"))  # present if the scorer also compares heads
        for heads in (by_layer, *(_node(inner).get("heads") for inner in ranking.values())):
            if isinstance(heads, list) and heads and isinstance(heads[0], list):
                return len(heads[0])
    as_set = _node(record.config["method"].get("scorer")).get("heads")
    return as_set if isinstance(as_set, int) else None


def usual_heads() -> Heads:
    """Return the setting `heads` of method=compresskv."""
    scorer = named_method("compresskv").scorer
    assert scorer is not None
    return cast(Heads, scorer.parameters["heads"])


def _node(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def ranking_label(record: Record) -> str:
    """Label a record with the kind of scores by which its selecting heads were chosen."""
    return f"{record.config['method']['scorer']['head_scores']} heads"


def calibration_label(record: Record) -> str:
    """Label a record with its method and calibration."""
    return f"{named(record.method)}, calibration {calibration_of(record)}"


def calibration_of(record: Record, setting: str | None = None) -> str:
    """Return the source or the file of the calibration that `setting` selects for a record; None: its own setting.

    `auto` selects the calibration of the record's protocol (`compresskv.calibration.choose`).
    """
    setting = str(record.config.get("calibration", "auto")) if setting is None else setting
    if setting != "auto":
        return setting
    first, otherwise = calibration.AUTO[record.config.get("protocol", {}).get("calibration_data", "held_out")]
    published_only = calibration.find_file(record.model, otherwise) and not calibration.find_file(record.model, first)
    return otherwise if published_only else first


def observation_label(record: Record) -> str:
    """Label a record with its method, window and pooling."""
    observation = record.config.get("observation", {})
    return f"{named(record.method)}, window {observation.get('window')}, {observation.get('pooling')} pooling"


def layers_label(record: Record) -> str:
    """Label a record with its method, and with "uniform layers" if its allocator has layers=uniform."""
    uniform = record.config["method"].get("allocator", {}).get("layers") == "uniform"
    return named(record.method) + (", uniform layers" if uniform else "")


def _observations() -> tuple[tuple[str, str], ...]:
    """Return pairs of SnapKV and semantic heads with equal observation, and pairs of each with the paper's window."""
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
    "table1_longbench": Item("LongBench (Tables 1 and 5, Fig. 4)", figure="budgets"),
    "table2_heads": Item("How many semantic heads select (Table 2)", subject="top-4 heads", label=heads_label),
    "table3_components": Item("Components of CompressKV (Table 3)", subject="SnapKV"),
    "fig1_attention": Item("Attention of three kinds of heads (Fig. 1)", source="attention", tested=False),
    "fig5_niah": Item("Needle in a haystack (Figs. 5, 6, 13–22)", figure="own"),
    "fig7_masking": Item(
        "Masking retrieval heads (Figs. 7, 23)",
        pairs=(
            ("random heads", "semantic heads"),
            ("random heads", "traditional heads"),
            ("traditional heads", "semantic heads"),
        ),
        figure="columns",
        finding="masking {worse} costs more",
    ),
    "fig8_efficiency": Item("Latency and memory over the prompt (Fig. 8)", source="efficiency", tested=False),
    "fig9_budgets": Item("Tokens kept by layer (Figs. 9, 10)", figure="columns", view="layers", tested=False),
    "fig11_heads": Item("Scores of traditional and semantic heads (Figs. 11, 12)", source="calibrate", tested=False),
    "v2_table1_models": Item("LongBench by model (second version, Table 1)"),
    "v2_fig5_niah": Item("Needle accuracy over the budget (second version, Fig. 5)", figure="budgets"),
    "v2_table2_selector": Item(
        "Traditional and semantic heads (second version, Table 2)", subject="traditional heads", label=ranking_label
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
        figure="budgets",
        label=layers_label,
    ),
    "calibration_leakage": Item(
        "Layer errors from held-out needles and from LongBench",
        subject="CompressKV, calibration held_out",
        label=calibration_label,
    ),
    "window_pooling": Item("Observation window and pooling", pairs=_observations(), label=observation_label),
    "beyond_retrieval": Item(
        "Beyond retrieval: LongBench by kind of task, and fidelity to the full cache",
        figure="budgets",
        view="abilities",
    ),
    "needles": Item("Other needles, another haystack", view="needles"),
    "kvpress_board": Item("RULER with the methods of kvpress's leaderboard", subject="", figure="budgets"),
    "ruler_board": Item("RULER, after the prompt and before the question", subject="", figure="budgets"),
    "decoding": Item("Eviction while decoding, on long answers", subject="Random", figure="own"),
}
"""Items by the name of their experiment."""

ALL = Item("all methods")
"""All results of a tree, with rows by method and budget; compares CompressKV with every other method of its budget."""


def item(name: str) -> Item:
    """Return the item of that name; for your own experiment, one with all methods and its evaluation's columns."""
    return ITEMS.get(name, Item(name, figure="budgets"))
