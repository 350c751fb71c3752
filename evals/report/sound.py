"""A setting as reports take it: without the samples whose fields are not as its evaluation writes them."""

from typing import Any

from typing_extensions import TypedDict

from evals.results.record import Record
from evals.results.schema import Count, Label, Number, exactly, misfit


@exactly
class Needle(TypedDict, total=False):
    length: Count
    depth: Number


@exactly
class Masked(Needle, total=False):
    ranking: Label
    masked: Count
    score_keywords: Number


@exactly
class LongBench(TypedDict, total=False):
    length: Count
    answers: list[str]


FIELDS: dict[str, Any] = {"niah": Needle, "head_masking": Masked, "longbench": LongBench}
"""What tables and figures read of the lines of an evaluation, by its kind."""


def sound(record: Record) -> tuple[Record, list[str]]:
    """The setting on its sound samples, and a phrase for whatever of its files is left out."""
    faults = [f"samples.jsonl:{number}: {fault}" for number, fault in record.line_faults.items()]
    if record.config_fault:
        faults.append(f"its configuration is not one ({record.config_fault})")
    kind = FIELDS.get(record.kind)
    wrong = {line["id"]: fault for line in record.covered if (fault := misfit(kind, line))} if kind else {}
    wrong |= {line["id"]: "no score" for line in record.covered if "score" not in line and record.scored}
    faults += [f"sample {id}: {fault}" for id, fault in wrong.items()]
    if wrong:
        record = record.only([line["id"] for line in record.covered if line["id"] not in wrong])
    return record, [f"{record.name}: {fault}" for fault in faults]
