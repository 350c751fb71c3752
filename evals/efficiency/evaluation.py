"""Measure every setting at every prompt length, as one sequence and in pools, and show tables and figures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from compresskv.budget import written
from compresskv.engine.attention import attached
from compresskv.engine.decode_eviction import refuse_scorer
from compresskv.engine.graph import graphs
from compresskv.engine.setting import FULL, Setting
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from evals.efficiency.concurrency import fill_pools
from evals.efficiency.config import Efficiency
from evals.efficiency.measure import Contender, Measurement, measure
from evals.efficiency.tables import FIELDS, draw, draw_pools, latency, pools, tables
from evals.files import new_folder, write_json
from evals.haystack import essays
from evals.job import Job, refuse_too_long
from evals.progress import Progress
from evals.results.provenance import environment
from evals.running.methods import build_method
from evals.tables.figures import save
from evals.tables.methods import Name, named
from evals.tables.printed import show_figures, show_texts

Measurements = dict[tuple[str, int], list[Measurement]]
"""All rounds of a setting at a prompt length, by (name, length)."""


def run(model: LoadedModel, config: Efficiency, jobs: Sequence[Job], progress: Progress) -> Path:
    """Measure every job and the full cache; return the path of the rows. Raises `UserError` at the end for failures."""
    replay = jobs[0].engine.graph == "auto"
    with graphs(model.model, replay):
        return run_contenders(model, config, contenders(model, jobs), jobs[0].results, progress, replay)


def contenders(model: LoadedModel, jobs: Sequence[Job]) -> dict[str, Contender]:
    """Return all contenders by name, the full cache first."""
    chunks = {job.prefill_chunk for job in jobs}
    schedules = {job.eviction for job in jobs if job.eviction.decodes}

    def variant(chunk: int | None, schedule: EvictionSchedule = AFTER_PROMPT) -> str:
        parts = [] if len(chunks) == 1 else [f"chunks of {chunk}" if chunk else "one chunk"]
        if schedule.decodes and len(schedules) > 1:
            parts.append(f"interval={schedule.interval} protect={schedule.protect}")
        return " ".join(parts)

    first = Contender(FULL, jobs[0].prefill_chunk, variant=variant(jobs[0].prefill_chunk))
    by_name = {str(Name(named("full"), variant=first.variant)): first}
    seen: Counter[Name] = Counter()
    for job in jobs:
        protocol, apart = job.protocol.label, variant(job.prefill_chunk, job.eviction)
        marked = protocol != "corrected"
        name = Name(named(job.method.name), job.budget, protocol, apart, marked, job.eviction.when)
        seen[name] += 1
        if seen[name] > 1:
            name = replace(name, variant=f"{apart} #{seen[name]}".strip())
        setting = Setting(build_method(model, job), job.budget)
        refuse_scorer(setting, job.eviction)
        about = (job.method.name, protocol, name.variant, job.eviction)
        by_name[str(name)] = Contender(setting, job.prefill_chunk, *about)
    return by_name


def run_contenders(
    model: LoadedModel,
    config: Efficiency,
    by_name: Mapping[str, Contender],
    results: Path,
    progress: Progress,
    replay: bool = False,
) -> Path:
    """Measure contenders, with ratios to the first; return the path. `replay`: whether CUDA graphs were asked for."""
    new_tokens = max(config.new_tokens, *config.outputs)
    longest = max(config.lengths)
    refuse_too_long(model, longest, new_tokens, "eval.lengths", "choose shorter lengths", value=longest)
    text, folder = _text(model, config), new_folder(results / "efficiency" / model.name)
    content: dict[str, Any] = {
        "model": model.name,
        "dtype": model.dtype,
        "backend": model.backend,
        "device": model.device.type,
        "graphs": replay and model.device.type == "cuda",
        "new_tokens": config.new_tokens,
        "rounds": config.rounds,
        "environment": environment(),
        "rows": [],
    }
    failures: dict[str, str] = {}
    path = folder / "efficiency.json"
    with attached(model.model, model.backend):
        for rows in _in_turn(model, config, by_name, text, progress, failures):
            write_json(path, content := {**content, "rows": rows})
        for filled in fill_pools(model, config, by_name, text, content["rows"], progress, failures):
            write_json(path, content := {**content, "concurrency": filled})
    if content["rows"]:
        _show(content, folder)
    if failures:
        what, reason = next(iter(failures.items()))
        raise UserError(
            None,
            "correct this and run it again",
            why=f"{len(failures)} measurements failed, such as {what} ({reason})",
        )
    return path


def _in_turn(
    model: LoadedModel,
    config: Efficiency,
    by_name: Mapping[str, Contender],
    text: torch.Tensor,
    progress: Progress,
    failures: dict[str, str],
) -> Iterator[list[dict[str, Any]]]:
    """Measure one sequence of every setting, round by round. Yields the rows so far and adds to `failures`."""
    measurements: Measurements = {}
    turns = list(product(config.lengths, range(config.rounds + 1), by_name))  # each round measures all contenders
    with progress.track(f"{model.name} efficiency", turns, "measurements") as steps:
        for length, round_, name in steps:
            what = f"{name} at {length} tokens"
            if what in failures:
                continue
            try:
                measured = measure(model, text[:length], by_name[name], config.new_tokens)
            except (UserError, torch.OutOfMemoryError) as error:
                failures[what] = str(error) or "out of memory"
                continue
            if round_:  # the first round is a warm-up
                measurements.setdefault((name, length), []).append(measured)
                yield [_row(*key, measurements, by_name) for key in measurements]


def _text(model: LoadedModel, config: Efficiency) -> torch.Tensor:
    """Return token ids [*] of the haystack, repeated until they reach the longest length."""
    text = "\n".join(essays(config.haystack))
    while len(ids := model.tokenizer(text, add_special_tokens=False).input_ids) < max(config.lengths):
        text += text
    return torch.tensor(ids, device=model.device)


def _row(name: str, length: int, measurements: Measurements, by_name: Mapping[str, Contender]) -> dict[str, Any]:
    """Return the medians of a setting at a length, their ratios to the first of `by_name`, and the values of rounds."""
    contender, rounds = by_name[name], measurements[name, length]

    def values(of: Sequence[Measurement]) -> dict[str, list[Any]]:
        return {field: [getattr(measured, field) for measured in of] for field in FIELDS}

    def medians(of: Sequence[Measurement]) -> dict[str, Any]:
        return {field: median(v) if v and None not in v else None for field, v in values(of).items()}

    mine, full = medians(rounds), medians(measurements.get((next(iter(by_name)), length), []))
    ratios = {f"{of}_ratio": mine[of] / full[of] for of in FIELDS if full[of] and mine[of] is not None}
    by_gpu = [median(round_) for round_ in zip(*(m.peak_bytes_by_gpu for m in rounds), strict=True)]
    bound = None if rounds[0].launch_bound is None else sum(bool(m.launch_bound) for m in rounds) > len(rounds) / 2
    gpus = {"launch_bound": bound, "peak_bytes_by_gpu": by_gpu}
    place = {"method": contender.method, "budget": written(contender.setting.budget), "protocol": contender.protocol}
    place |= {"variant": contender.variant, "when": contender.schedule.when}
    return {"setting": name, "length": length, **place, **mine, **gpus, **ratios, "by_round": values(rounds)}


def _show(content: Mapping[str, Any], folder: Path) -> None:
    """Print the tables and save the figures."""
    show_texts(latency(content))
    paths = save(draw(tables(content)), folder / "efficiency", (".png", ".svg"))
    if content.get("concurrency"):
        of_pools = pools(content)
        show_texts(of_pools)
        paths += save(draw_pools(content["concurrency"], of_pools.title), folder / "pools", (".png", ".svg"))
    show_figures(paths)
