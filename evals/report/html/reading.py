"""A results tree for the page: read setting by setting, each reduced at once to what the page shows."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from compresskv.errors import UserError
from evals.results.means import layer_means
from evals.results.provenance import shown_environment
from evals.results.record import Record, records
from evals.results.schema import FIDELITY, Line
from evals.results.shows import hook, own_fields, sound
from evals.results.verify import failed_of

EMBEDDED = 2400
"""Sample lines that the page's browser holds at most, so that it opens quickly whatever the size of the tree."""

LONGEST = 1200
"""Characters of a prediction or an answer that are shown."""

TOKENS = 128
"""Tokens of an answer whose KL is shown."""

ALL_FIELDS = ("id", "score", "prompt_sha256", *FIDELITY)
"""Fields of the lines that tables and figures are made of, beside those that the evaluation needs."""

BROWSED = (
    *("id", "prompt_tail", "prediction", "prompt_tokens", "prompt_sha256", "truncated", "new_tokens"),
    *("realised_budget", "cache_bytes", *FIDELITY),
)
"""Fields of the lines that the browser shows, with those of the evaluation and all scores."""


@dataclass(frozen=True)
class Setting:
    """One setting with a summary: its `record` without what the page does not show.

    `kept`: mean tokens kept by each layer, over samples and KV heads. `batches`: the settings that it was decoded with,
    each combination once. `browsed`: the lines for the browser.
    """

    record: Record
    kept: tuple[float, ...]
    batches: tuple[tuple[str, ...], ...]
    browsed: Sequence[Line] = ()


@dataclass(frozen=True)
class Tree:
    """All settings that have a summary; `unfinished` have none yet. `faults`: what is wrong with files, in phrases."""

    results: Path
    settings: Sequence[Setting]
    unfinished: int
    faults: Sequence[str]
    lines: int
    browsable: int

    @property
    def texts(self) -> bool:
        """Whether any line of the browser has what a model wrote."""
        return any("prediction" in line for setting in self.settings for line in setting.browsed)


def read(results: Path) -> Tree:
    """Read the whole tree; one setting at a time is in memory. Raises `UserError` where there is none."""
    if not results.is_dir():
        raise UserError(
            "results", "name a results tree, such as results", value=results, why="there is no such directory"
        )
    waiting = records(results)
    chosen = _sample_places(waiting)
    shared = _Shared()
    settings: list[Setting] = []
    ids_of: dict[tuple[str, ...], set[str]] = {}
    faults: list[str] = []
    unfinished = lines = 0
    for place, whole in enumerate(waiting):
        if whole.summary is None:
            if whole.scored:
                unfinished += 1
                faults += [f"{whole.name}: {whole.problem}"] if _damaged(whole) else []
            continue
        record, left_out = sound(whole)
        faults += left_out
        if not record.covered:
            faults.append(f"{record.name}: the summary covers no samples with scores")
            continue
        faults += _faults(record)
        lines += len(record.covered)
        group = record.group
        ids: set[str] = set()
        if group in chosen and chosen[group][0] <= place < chosen[group][1]:
            count = chosen[group][2]
            ids = ids_of.setdefault(group, set(spread([line["id"] for line in record.covered], count)))
        settings.append(_setting(record, ids, shared))
        waiting[place] = whole.unread()
    browsable = sum(len(setting.browsed) for setting in settings)
    return Tree(results, settings, unfinished, faults, lines, browsable)


class _Shared:
    """Equal values as one object: settings of a sweep have nearly the same configuration, environment and ids."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def one(self, value: Any) -> Any:
        return self._known.setdefault(json.dumps(value, sort_keys=True, default=str), value)

    def each(self, mapping: Any) -> dict[str, Any]:
        """The mapping, its values shared."""
        return {key: self.one(value) for key, value in mapping.items()} if isinstance(mapping, Mapping) else {}


def _setting(record: Record, browsed: set[str], shared: _Shared) -> Setting:
    of_evaluation = hook(record.kind, "reduced", _reduced)
    lines: list[Line] = []
    for line in record.covered:
        reduced = {name: line[name] for name in ALL_FIELDS if name in line} | of_evaluation(record.task, line)
        reduced["id"] = sys.intern(line["id"])
        if "prompt_sha256" in reduced:
            reduced["prompt_sha256"] = sys.intern(str(reduced["prompt_sha256"]))
        lines.append(reduced)
    failures: list[Line] = []
    for line in record.failures.values():
        failures.append({name: value for name, value in line.items() if name not in ("of", "checksum")})
    summary = dict(record.summary or {})
    summary.pop("method_in_full", None)
    summary |= {"samples": [line["id"] for line in lines], "config": shared.each(record.config)}
    summary["prompt"] = shared.one(summary.get("prompt"))
    summary["environment"] = shared.one(shown_environment(summary.get("environment")))
    batches = dict.fromkeys(tuple(line["batch"]) for line in record.covered if isinstance(line.get("batch"), list))
    shown = [_browsed(record, line) for line in record.covered if line["id"] in browsed]
    kept, combinations = _kept(record.covered), shared.one(tuple(batches))
    return Setting(record.reduced(lines, failures, summary), kept, combinations, shown)


def _reduced(task: str, line: Line) -> Line:
    """The fields of the evaluation, and its further scores."""
    return own_fields(line) | {name: value for name, value in line.items() if name.startswith("score_")}


def _kept(lines: Sequence[Line]) -> tuple[float, ...]:
    means = [layers for line in lines if (layers := layer_means(line))]
    if not means or len({len(layers) for layers in means}) > 1:
        return ()
    return tuple(round(fmean(layer), 2) for layer in zip(*means, strict=True))


def _browsed(record: Record, line: Line) -> Line:
    fields = {name: value for name, value in line.items() if name in BROWSED or name.startswith("score")}
    prompt = (record.summary or {}).get("prompt")
    of_evaluation = hook(record.kind, "browsed", lambda line, prompt: own_fields(line))
    fields |= of_evaluation(line, prompt if isinstance(prompt, dict) else {})
    fields = {name: _shortened(value) for name, value in fields.items()}
    if isinstance(line.get("kl_per_token"), list):
        values = [value for value in line["kl_per_token"] if isinstance(value, (int, float))]
        fields["kl_per_token"] = [round(value, 3) for value in values[:TOKENS]]
    return {**fields, "kept": [round(layer, 1) for layer in layer_means(line)]}


def _shortened(value: Any) -> Any:
    """A text with at most `LONGEST` characters, and how many more there are; of a list of texts, the first five."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_shortened(item) for item in value[:5]]
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}… ({len(value) - LONGEST} more characters)"
    return value


def _damaged(record: Record) -> bool:
    """Whether a setting without a summary has a file in its place that is none."""
    return (record.path / "summary.json").exists() or (record.path / "summary.json").is_symlink()


def _faults(record: Record) -> list[str]:
    """What can be seen at a glance; `python -m evals results verify` looks closer."""
    phrases = []
    if record.failures:
        phrases.append(f"{record.name}: {failed_of(record.failures)}")
    summary = record.summary or {}
    if missing := len(summary.get("samples", ())) - len(record.covered):
        phrases.append(f"{record.name}: the summary covers {missing} samples that are not there")
    elif abs(fmean(line["score"] for line in record.covered) - summary["score"]) > 0.006:
        phrases.append(f"{record.name}: the summary's score is not the mean of its samples")
    return phrases


def _sample_places(waiting: Sequence[Record]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """For each group with lines in the browser: first and last place of its settings, and how many samples of each.

    All settings of a group show the same samples. Where the tree is too large, groups are picked evenly over it.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, record in enumerate(waiting):
        places.setdefault(record.group, []).append(place)
    groups = list(places)
    if len(waiting) > EMBEDDED:
        groups = spread(groups, max(1, EMBEDDED * len(groups) // len(waiting)))
    each = max(1, EMBEDDED // max(1, sum(len(places[group]) for group in groups)))
    return {
        group: (places[group][0], min(places[group][-1] + 1, places[group][0] + EMBEDDED), each) for group in groups
    }


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[place * len(items) // count] for place in range(count)]
