"""The names of methods and models as papers write them."""

from collections.abc import Mapping
from typing import Any

from compresskv import calibration
from evals.results.record import Record

METHODS = {
    "full": "FullKV",
    "streaming_llm": "StreamingLLM",
    "snapkv": "SnapKV",
    "pyramidkv": "PyramidKV",
    "cake": "CAKE",
    "headkv": "HeadKV",
    "adakv": "AdaKV",
    "compresskv": "CompressKV",
    "headcompresskv": "HeadCompressKV",
    "adacompresskv": "AdaCompressKV",
    "random": "Random",
    "tova": "TOVA",
    "knorm": "Key norm",
    "h2o": "H2O",
    # Compositions that the paper has a name for (Table 3).
    "compresskv-uniform": "SnapKV + semantic heads",
    "snapkv-layer_error": "SnapKV + layer budgets",
}
"""By the names of `conf/method`, and of compositions as results have them."""

TASKS = {
    "narrativeqa": "NarrativeQA",
    "qasper": "Qasper",
    "multifieldqa_en": "MF-en",
    "multifieldqa_zh": "MF-zh",
    "hotpotqa": "HotpotQA",
    "2wikimqa": "2WikiMQA",
    "musique": "MuSiQue",
    "dureader": "DuReader",
    "gov_report": "GovReport",
    "qmsum": "QMSum",
    "multi_news": "MultiNews",
    "vcsum": "VCSUM",
    "trec": "TREC",
    "triviaqa": "TriviaQA",
    "samsum": "SAMSum",
    "lsht": "LSHT",
    "passage_count": "PCount",
    "passage_retrieval_en": "PRe",
    "passage_retrieval_zh": "PRe-zh",
    "lcc": "LCC",
    "repobench-p": "RB-P",
}
"""LongBench's tasks by the names of their files."""

PUBLISHED = {"SnapKV + semantic heads + layer budgets": "CompressKV"}
"""Methods that results/paper calls otherwise than `METHODS`."""


def method_label(record: Record) -> str:
    """The name of a result's method; a composition without one is named by its parts."""
    return named(record.method)


def named(method: str) -> str:
    """The name of a method of `conf/method`, or of a composition as results have it."""
    if method in METHODS:
        return METHODS[method]
    name, _, parts = method.partition("-")
    return f"{METHODS.get(name, name)} ({parts})" if parts else name


def heads_label(record: Record) -> str:
    """How many retrieval heads of a layer select, as in the paper's Table 2."""
    heads = selecting_heads(record)
    return "number of heads unknown" if heads is None else f"top-{heads} heads"


def selecting_heads(record: Record) -> int | None:
    """How many heads of a layer selected; None where the method's scorer has no such number."""
    built = (record.summary or {}).get("method_in_full")
    scorer = _node(_node(built).get("EvictionMethod")).get("scorer")
    for fields in _node(scorer).values():
        by_layer = _node(fields).get("heads")
        ranking = _node(_node(fields).get("ranking"))  # of a scorer that also compares heads
        for heads in (by_layer, *(_node(inner).get("heads") for inner in ranking.values())):
            if isinstance(heads, list) and heads and isinstance(heads[0], list):
                return len(heads[0])
    as_set = _node(record.config["method"].get("scorer")).get("heads")
    return as_set if isinstance(as_set, int) else None


def _node(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def ranking_label(record: Record) -> str:
    """By which scores the heads that select were chosen."""
    return f"{record.config['method']['scorer']['head_scores']} heads"


def calibration_label(record: Record) -> str:
    """Method and the calibration that it used."""
    return f"{method_label(record)}, calibration {calibration_of(record)}"


def calibration_of(record: Record, setting: str | None = None) -> str:
    """The source, or the file, of the calibration that a `setting` means for a record; None: its own setting.

    `auto` is what the record's protocol takes (`compresskv.calibration.choose`).
    """
    setting = str(record.config.get("calibration", "auto")) if setting is None else setting
    if setting != "auto":
        return setting
    first, otherwise = calibration.AUTO[record.config.get("protocol", {}).get("calibration_data", "held_out")]
    published_only = calibration.find_file(record.model, otherwise) and not calibration.find_file(record.model, first)
    return otherwise if published_only else first


def observation_label(record: Record) -> str:
    """Method, window and pooling."""
    observation = record.config.get("observation", {})
    return f"{method_label(record)}, window {observation.get('window')}, {observation.get('pooling')} pooling"


def layers_label(record: Record) -> str:
    """The method, and whether layers share the budget alike where the method alone does not say so."""
    uniform = record.config["method"].get("allocator", {}).get("layers") == "uniform"
    return method_label(record) + (", uniform layers" if uniform else "")


def tokens_label(tokens: int) -> str:
    """A length such as 4K."""
    return f"{tokens / 1000:g}K" if tokens >= 1000 else str(tokens)


def tokens_of(label: str) -> float:
    """The length that `tokens_label` names."""
    return 1000 * float(label.removesuffix("K")) if label.endswith("K") else float(label)
