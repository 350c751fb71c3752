"""Export the part of a results tree that is committed: summaries and scores of samples, without any texts."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compresskv.errors import UserError
from evals.files import dumps, refused, write_text, write_yaml
from evals.report import artefacts
from evals.results.lines import sealed as sealed_line
from evals.results.record import Record, records
from evals.results.schema import Line
from evals.results.summary import measured, sealed

PARTS = ("runs", "efficiency", "artefacts")
"""Folders that an export replaces."""

ARTEFACTS = (
    "fig5_niah",
    "fig7_masking",
    "fig8_efficiency",
    "fig9_budgets",
    "fig11_heads",
    "table1_longbench",
    "table2_heads",
    "table3_components",
    "v2_fig5_niah",
    "v2_fig9_plugin",
    "v2_table2_selector",
)

LEFT_OUT = (
    "actual_depth",
    "cache_bytes",
    "compressed",
    "haystack_repeats",
    "new_tokens",
    "prompt_tokens",
    "realised_budget",
    "score_needle",
    "total_cache_bytes",
)
"""Numbers of a sample that are already known from the summary or the prompt."""

RANKING = "ranking"
"""Field with the ranking whose heads are masked. It is a name, not a text of a prompt or an answer."""

FLAGS = ("misplaced", "truncated")
"""Fields that are kept in a line only if they are true."""

BY_LAYER = "compresskv"
"""Method whose lines keep the tokens by layer, which experiment=fig9_budgets draws."""

CONFIG = (
    *("budget", "eviction", "calibration", "prefill_chunk", "fidelity", "observation", "method", "eval", "experiment"),
)
"""Parts of a configuration that are kept, in addition to the names of model and protocol."""


def export(results: Path, target: Path) -> int:
    """Write the complete settings of the tree `results` and their artefacts to `target`, and return their number.

    `target` is an ordinary results tree. Raises `UserError` if a setting has a fault, or if `target` cannot be written.
    """
    chosen = [record for record in records(results) if record.summary]
    if not chosen:
        raise UserError("results", "run `make reference` first", value=results / "runs", why="no results")
    if faulty := [record for record in chosen if record.problems]:
        raise UserError(None, "remove that folder and run again", value=faulty[0].path, why=str(faulty[0].problem))
    try:
        for part in PARTS:
            if (target / part).exists():
                shutil.rmtree(target / part)
        for record in chosen:
            export_setting(record, target / "runs" / record.path.relative_to(results / "runs"))
        export_efficiency(results / "efficiency", target / "efficiency")
    except OSError as error:
        raise refused(target, error) from error
    export_artefacts(target)
    return len(chosen)


def export_setting(record: Record, folder: Path) -> None:
    """Write a setting to `folder`: its lines without texts, and a matching summary and configuration."""
    assert record.summary is not None
    lines = [numbers(line, record.method == BY_LAYER) for line in record.covered]
    about = {key: value for key, value in record.summary.items() if key not in ("config", "checksum")}
    about["prompt"] = {key: value for key, value in about.get("prompt", {}).items() if key != "template"}
    summary = sealed({**about, **measured(lines)})
    write_text(folder / "samples.jsonl", "".join(f"{compact(sealed_line(line))}\n" for line in lines))
    write_text(folder / "summary.json", f"{compact(summary)}\n")
    write_yaml(folder / "config.yaml", configuration(record.config))


def compact(content: Mapping[str, Any]) -> str:
    return dumps(content, separators=(",", ":"))


def numbers(line: Line, by_layer: bool) -> Line:
    """Return a sample's line without texts. `by_layer`: whether to include the tokens kept in each layer."""
    kept: Line = {"id": line["id"]}
    for name, value in line.items():
        wanted = isinstance(value, (int, float)) and name not in LEFT_OUT and (value or name not in FLAGS)
        if wanted or name == RANKING or (name == "kept" and by_layer):
            kept[name] = value
    return kept


def configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration that distinguish settings. A path to data is cut to its last name."""
    kept = {name: config[name] for name in CONFIG if name in config}
    kept["method"] = {name: value for name, value in config["method"].items() if name != "plain"}
    if data := config["eval"].get("data"):
        kept["eval"] = {**config["eval"], "data": Path(data).name}
    return {"model": {"name": config["model"]["name"]}, "protocol": {"name": config["protocol"]["name"]}, **kept}


def export_efficiency(source: Path, target: Path) -> None:
    """Copy the latest measurement of every model."""
    for of_model in sorted(source.glob("*")):
        measurements = sorted(of_model.glob("*/efficiency.json"))
        if measurements:
            latest = measurements[-1].parent
            shutil.copytree(latest, target / of_model.name / latest.name, ignore=shutil.ignore_patterns("*.svg"))


def export_artefacts(target: Path) -> None:
    """Write tables and PNG figures of the `ARTEFACTS` that have results. Files in other formats are deleted."""
    for item in ARTEFACTS:
        try:
            paths = artefacts.write(item, target)
        except UserError as error:
            print(f"no artefacts: {error}", file=sys.stderr)
            continue
        for path in paths:
            if path.suffix in (".svg", ".pdf", ".tex"):
                path.unlink()
