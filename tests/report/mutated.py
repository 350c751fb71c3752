"""Build a small results tree with every kind of file that reports read, and damage these files."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from evals.results.lines import sealed as sealed_line
from evals.results.record import Record
from evals.results.summary import sealed
from tests.support import calibrations
from tests.support.trees import efficiency, line, nodes, setting

VALUES = (..., None, "x", -1, 0, True, [], {}, [1], [None], {"x": 1}, 1e308, 1e-320, 10**30, "y" * 5000)
"""Wrong values for any place in a file; `...` removes the value."""

TEXTS = ("NaN", "1e999", "-Infinity", "9" * 5000, '"\\ud800"', "[" * 2000, "", "\xff")
"""Wrong contents of whole files: invalid JSON, or unusable values."""

OF_KIND = {
    "niah": ("niah.config.Niah", "needle", {"length": 1000, "depth": 50.0, "kl": 0.5, "kl_per_token": [0.5]}),
    "longbench": ("longbench.config.LongBench", "qasper", {"length": 900, "answers": ["so"], "official": False}),
    "jsonl": ("jsonl.config.Jsonl", "mine", {"answers": ["so"], "metric": "rouge1_recall"}),
}
MASKED = {"length": 500, "depth": 0.0, "score_keywords": 50.0}


def tree(results: Path) -> Path:
    """Write two settings of each evaluation that has separate tables, and one file of each measurement."""
    for kind, (target, task, fields) in OF_KIND.items():
        for method, budget in (("full", None), ("compresskv", 64)):
            lines = [line(f"L1000-D50-N{n}" if kind == "niah" else str(n), 50 + n, budget, **fields) for n in (0, 1)]
            of_eval = {"_target_": f"evals.{target}", "haystack": "a", "needles": 1}
            of_experiment(setting(results, lines, method, budget, eval=kind, task=task, of_eval=of_eval))
    for ranking, count in (("none", 0), ("semantic", 3)):
        lines = [line(f"L500-D{n}-N0", 20, None, ranking=ranking, masked=count, **MASKED) for n in (0, 1)]
        of_eval = {"_target_": "evals.head_masking.config.HeadMasking", "masked": [0, 10]}
        of_experiment(
            setting(results, lines, "full", None, eval="head_masking", task=f"{ranking}-{count}", of_eval=of_eval)
        )
    efficiency(results)
    head = {"kind": "semantic", "layer": 1, "head": 0, "ranks": {"traditional": 2, "semantic": 1}}
    head |= {"attention": [0.5, 0.5], "by_step": {"sinks": [0.1, 0.2], "needle": [0.3, 0.4]}}
    prompt = {"model": "tiny", "protocol": "corrected", "sample": "L1-D0-N0", "answer": "so", "prompt_tokens": 2}
    prompt |= {"tokens": ["a", "b"], "parts": {"sinks": [0, 1], "needle": [1, 2]}, "heads": [head]}
    scores = {"semantic": [[0.1, 0.2]] * 2, "traditional": [[0.2, 0.1]] * 2}
    made = calibrations.record(head_scores=scores, rankings={}, accepted={"a": 3})
    for path, content in (("attention/tiny/one.json", prompt), ("calibration/tiny.held_out.json", made)):
        (results / path).parent.mkdir(parents=True)
        (results / path).write_text(json.dumps(content))
    return results


def of_experiment(record: Record) -> None:
    """Write the complete configuration of its method to a setting."""
    folder = record.path
    summary = json.loads((folder / "summary.json").read_text())
    summary["config"]["method"] = nodes("fig5_niah")[summary["method"]]
    summary["method_in_full"] = {"EvictionMethod": {"scorer": {"Scorer": {"heads": [[1], [2]]}}}}
    (folder / "summary.json").write_text(json.dumps(sealed(summary)))
    (folder / "config.yaml").write_text(yaml.safe_dump(summary["config"]))


def mutate(results: Path, random: Random) -> dict[Path, Any]:
    """Change one file in each folder, in one place or completely; returns the changes by file."""
    done: dict[Path, Any] = {}
    for folder in sorted({path.parent for path in results.rglob("*") if path.is_file()}):
        path = random.choice(sorted(folder.iterdir()))
        content, written = contents(path)
        if random.random() < 0.05:
            done[path] = random.choice(TEXTS)
            path.write_text(done[path], encoding="latin-1")
        else:
            place = random.choice(list(places(content)))
            done[path] = place, random.choice(VALUES)
            path.write_text(written(changed(content, *done[path])))
    return done


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested mappings and lists."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(item, (*place, key))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with `value` at `place`, or without that place if `value` is `...`."""
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def contents(path: Path) -> tuple[Any, Any]:
    """Return the content of a file and a function that serialises it, with valid checksums for lines and summaries."""
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text()), yaml.safe_dump
    if path.suffix == ".jsonl":
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        return lines, lambda lines: "".join(f"{json.dumps(_sealed(line, sealed_line))}\n" for line in lines)
    seal = sealed if path.name == "summary.json" else dict
    return json.loads(path.read_text()), lambda content: json.dumps(_sealed(content, seal))


def _sealed(content: Any, seal: Any) -> Any:
    """Update the content's checksum, if it has one."""
    try:
        return seal(content) if "checksum" in content else content
    except (TypeError, ValueError, AttributeError):
        return content


def one_of_each_folder(results: Path) -> list[Path]:
    """Return one file of every folder, so that every kind of file is included."""
    folders = sorted({path.parent for path in results.rglob("*") if path.is_file()})
    return [sorted(folder.iterdir())[place % len(list(folder.iterdir()))] for place, folder in enumerate(folders)]
