"""Read a results tree for the page, one setting at a time, and keep only the data that the page shows."""

import json
import os
import sys
from array import array
from collections.abc import Sequence
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
"""Maximum number of sample lines in the page's browser, so that pages of large trees open quickly."""

LONGEST = 1200
"""Maximum number of characters shown of a prediction or an answer."""

TOKENS = 128
"""Maximum number of tokens of an answer for which the KL is shown."""

PER_TOKEN = ("kl_per_token", "control_kl_per_token")

ALL_FIELDS = ("id", "score", "prompt_sha256", *FIDELITY, "control_agreement")
"""Line fields that tables and figures need, in addition to the fields per token and to the fields of the evaluation."""

BROWSED = (
    *("id", "prompt_tail", "prediction", "prompt_tokens", "prompt_sha256", "truncated", "new_tokens"),
    *("realised_budget", "cache_bytes", *FIDELITY),
)
"""Line fields that the browser shows, in addition to the fields of the evaluation and all scores."""


@dataclass(frozen=True)
class Setting:
    """One setting with a summary; its `record` has only the data that the page shows.

    `kept`: mean tokens kept by each layer, over samples and KV heads. `batches`: each combination of settings that it
    was decoded with. `browsed`: the lines for the browser.
    """

    record: Record
    kept: tuple[float, ...]
    batches: tuple[tuple[str, ...], ...]
    browsed: Sequence[Line]


@dataclass(frozen=True)
class Tree:
    """All settings with a summary, and the number of `unfinished` ones without.

    `faults`: a phrase for each fault of a file.
    """

    results: Path
    settings: Sequence[Setting]
    unfinished: int
    faults: Sequence[str]

    @property
    def lines(self) -> int:
        """The number of samples of all settings."""
        return sum(len(setting.record.covered) for setting in self.settings)

    @property
    def browsable(self) -> int:
        """The number of lines in the browser."""
        return sum(len(setting.browsed) for setting in self.settings)

    @property
    def texts(self) -> bool:
        """Whether any line in the browser has the text that a model generated."""
        return any("prediction" in line for setting in self.settings for line in setting.browsed)


def read(results: Path) -> Tree:
    """Read the tree with one setting at a time in memory. Raises `UserError` if the directory does not exist."""
    if not results.is_dir():
        raise UserError("results", "name a results tree, such as results", value=results, why="directory not found")
    waiting = records(results)
    chosen = _sample_counts(waiting)
    shared = Shared()
    settings: list[Setting] = []
    ids_of: dict[tuple[str, ...], set[str]] = {}
    faults: list[str] = []
    unfinished = 0
    for place, whole in enumerate(waiting):
        if whole.summary is None:
            if whole.scored:
                unfinished += 1
                if os.path.lexists(whole.path / "summary.json"):  # it is damaged
                    faults.append(f"{whole.name}: {whole.problem}")
            continue
        record, left_out = sound(whole)
        faults += left_out
        if not record.covered:
            faults.append(f"{record.name}: the summary covers no samples with scores")
            continue
        faults += _faults(record)
        ids: set[str] = set()
        if count := chosen.get(place):
            ids = ids_of.setdefault(record.group, set(spread([line["id"] for line in record.covered], count)))
        settings.append(_setting(record, ids, shared))
        waiting[place] = whole.unread()
    return Tree(results, settings, unfinished, faults)


class Shared:
    """Stores equal values once. Most settings of a sweep share configuration, environment and ids."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Return the index of `value` in `values`. Stores it if no equal value is there yet."""
        place = self._places.setdefault(json.dumps(value, sort_keys=True, default=str), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place

    def one(self, value: Any) -> Any:
        """Return the stored value that equals `value`."""
        return self.values[self.place(value)]


def _setting(record: Record, browsed: set[str], shared: Shared) -> Setting:
    of_evaluation = hook(record.kind, "reduced", _reduced)
    lines: list[Line] = []
    for line in record.covered:
        reduced = {name: line[name] for name in ALL_FIELDS if name in line} | of_evaluation(record.task, line)
        reduced["id"] = sys.intern(line["id"])
        if "prompt_sha256" in reduced:
            reduced["prompt_sha256"] = sys.intern(str(reduced["prompt_sha256"]))
        if any(line.get(name) for name in PER_TOKEN):  # for the tails of fidelity, in little memory
            reduced |= {name: array("d", line[name]) for name in PER_TOKEN if line.get(name)}
            reduced |= {"prediction": hash(line["prediction"])} if "prediction" in line else {}
        lines.append(reduced)
    failures = [
        {name: value for name, value in line.items() if name not in ("of", "checksum")}
        for line in record.failures.values()
    ]
    summary = {name: value for name, value in (record.summary or {}).items() if name != "method_in_full"}
    config = {name: shared.one(value) for name, value in record.config.items()}
    summary |= {"samples": [line["id"] for line in lines], "config": config}
    summary["prompt"] = shared.one(summary.get("prompt"))
    summary["environment"] = shared.one(shown_environment(summary.get("environment")))
    batches = dict.fromkeys(tuple(line["batch"]) for line in record.covered if isinstance(line.get("batch"), list))
    shown = [_browsed(record, line) for line in record.covered if line["id"] in browsed]
    kept, combinations = _kept(record.covered), shared.one(tuple(batches))
    return Setting(record.reduced(lines, failures, summary), kept, combinations, shown)


def _reduced(task: str, line: Line) -> Line:
    """Return the fields of the evaluation, and its further scores."""
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
    if "kl_per_token" in line:
        fields["kl_per_token"] = [round(value, 3) for value in line["kl_per_token"][:TOKENS]]
    return {**fields, "kept": [round(layer, 1) for layer in layer_means(line)]}


def _shortened(value: Any) -> Any:
    """Cut a text to `LONGEST` characters and say how many were cut; of a list of texts, the first five."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_shortened(item) for item in value[:5]]
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}… ({len(value) - LONGEST} more characters)"
    return value


def _faults(record: Record) -> list[str]:
    """Return the faults found without further reading; `python -m evals results verify` checks everything."""
    phrases = []
    if record.failures:
        phrases.append(f"{record.name}: {failed_of(record.failures)}")
    summary = record.summary or {}
    if missing := len(summary.get("samples", ())) - len(record.covered):
        phrases.append(f"{record.name}: the summary covers {missing} samples that are not there")
    elif abs(fmean(line["score"] for line in record.covered) - summary["score"]) > 0.006:
        phrases.append(f"{record.name}: the summary's score is not the mean of its samples")
    return phrases


def _sample_counts(waiting: Sequence[Record]) -> dict[int, int]:
    """Return the number of samples in the browser by the index of a setting; settings of a group show the same samples.

    In large trees, evenly spaced groups are chosen.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for place, record in enumerate(waiting):
        places.setdefault(record.group, []).append(place)
    groups = list(places)
    if len(waiting) > EMBEDDED:
        groups = spread(groups, max(1, EMBEDDED * len(groups) // len(waiting)))
    each = max(1, EMBEDDED // max(1, sum(len(places[group]) for group in groups)))
    return {place: each for group in groups for place in places[group][:EMBEDDED]}


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
