"""Run head masking: prefill every prompt once, then decode it with each choice of masked heads."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compresskv.engine.attention import attached
from compresskv.engine.masking import generate_masked
from compresskv.engine.setting import FULL
from compresskv.errors import UserError
from compresskv.models import LoadedModel
from evals.head_masking.choices import Choice, choices
from evals.head_masking.config import HeadMasking
from evals.head_masking.tables import texts
from evals.job import Job, Sample, Work
from evals.niah import released
from evals.niah.evaluation import NiahTask
from evals.niah.prompts import NeedlePrompts
from evals.progress import Progress
from evals.results.finish import finish
from evals.results.record import Record
from evals.results.schema import Line
from evals.results.store import SampleStore
from evals.results.verify import failed_of
from evals.running.batches import failed_line, no_answer, refuse_another_prompt, sample_line, some
from evals.running.forecast import forecast
from evals.running.methods import context_of
from evals.running.plan import missing_of
from evals.running.tasks import about, open_store, setting_folder
from evals.tables.printed import show_texts


def run(model: LoadedModel, config: HeadMasking, jobs: Sequence[Job], progress: Progress) -> Path:
    """Mask heads under every protocol of the jobs, and print the results; returns their folder."""
    for masking in of_protocols(model, config, jobs):
        masking.run(progress)
    return jobs[0].results / "runs" / model.name / config.name


def works(model: LoadedModel, config: HeadMasking, jobs: Sequence[Job]) -> list[Work]:
    """Return the missing samples under every protocol of the jobs. Raises `UserError` as `run` does."""
    return [work for masking in of_protocols(model, config, jobs) if (work := masking.work)]


def of_protocols(model: LoadedModel, config: HeadMasking, jobs: Sequence[Job]) -> list["Masking"]:
    """Return a `Masking` for each protocol of the jobs. Raises `UserError` for methods that evict."""
    for job in jobs:
        if not job.method.keeps_everything:
            raise UserError(
                "method",
                "set method=full",
                value=job.method.name,
                why=f"eval={config.name} decodes with the full cache",
            )
    return [Masking(model, config, job) for job in {job.protocol: job for job in jobs}.values()]


@dataclass(frozen=True)
class MaskingTask(NiahTask):
    """Needle prompts for one choice of heads, stored as a separate task."""

    choice: Choice

    @property
    def name(self) -> str:
        return self.choice.name

    @cached_property
    def prompts(self) -> NeedlePrompts:
        rule = self.protocol.masking_sentence_rule
        return NeedlePrompts(self.model, self.protocol, self.book, rule, raw=released.RAW_MASKING)

    @property
    def identity(self) -> Mapping[str, Any]:
        of_needles = {name: value for name, value in super().identity.items() if name != "niah_sentence_rule"}
        masked = [list(heads) for heads in self.choice.heads]
        return {**of_needles, "masking_sentence_rule": self.protocol.masking_sentence_rule, "masked_heads": masked}


@dataclass(frozen=True)
class Masking:
    """Head masking under the protocol of one job, which uses the full cache."""

    model: LoadedModel
    config: HeadMasking
    job: Job

    @cached_property
    def tasks(self) -> list[MaskingTask]:
        """One task for each choice of heads, all with the same prompts."""
        made, protocol = context_of(self.model, self.job).calibrated(), self.job.protocol
        rankings: Sequence[str] = self.config.rankings
        scores = {name: made.scores(made.kind_of_scores(name, protocol)) for name in rankings}
        chosen = choices(self.config.masked, self.config.draws, scores)
        return [MaskingTask(self.config, self.model, protocol, choice) for choice in chosen]

    @property
    def work(self) -> Work | None:
        """The missing prompts, each decoded for every choice that lacks it; None if nothing is missing."""
        missing: Counter[str] = Counter()
        for task in self.tasks:
            missing.update(missing_of(task, setting_folder(self.model, self.job, task, FULL), self.job))
        if not missing:
            return None
        times = missing.total() / len(missing)
        return Work(self.model, "needle", self.tasks[0], [self.job], [FULL], list(missing), times)

    def run(self, progress: Progress) -> None:
        """Decode missing samples, write the summaries, and print a table of the prompts that all choices have answered.

        Raises `UserError` if a prompt failed.
        """
        stores: dict[Choice, SampleStore] = {}
        try:
            for task in self.tasks:
                stores[task.choice] = open_store(self.model, self.job, task, FULL)
            for id in some(self.tasks[0].sample_ids, self.tasks[0]):
                sample = self.tasks[0].sample(id)
                for store in stores.values():
                    refuse_another_prompt(store, sample)
            self.decode(stores, progress)
            answered = [id for id in self.tasks[0].sample_ids if all(id in store.lines for store in stores.values())]
            records: list[Record] = []
            failures: dict[str, Line] = {}
            for task in self.tasks:
                store = stores[task.choice]
                of_task = about(self.model, self.job, task, FULL)
                finished = finish(store, task.sample_ids, of_task, self.job.results / "runs")
                records.append(finished.only(answered))
                failures |= {id: store.failures[id] for id in task.sample_ids if id in store.failures}
        finally:
            for store in stores.values():
                store.close()
        for table in texts(records) if answered else ():
            show_texts(table)
        if failures:
            place = f"{self.model.name} · {self.config.name} · {self.job.protocol.label}"
            raise UserError(
                None, "run the same command again for failed samples", why=f"{place}: {failed_of(failures)}"
            )

    def decode(self, stores: Mapping[Choice, SampleStore], progress: Progress) -> None:
        """Decode and store the missing lines, prompt by prompt."""
        model, job, task = self.model, self.job, self.tasks[0]
        missing = {
            id: choices
            for id in task.sample_ids
            if (choices := [choice for choice, store in stores.items() if id not in store.lines])
        }
        if not missing:
            return
        title = f"{model.name} {self.config.name}"
        expected = forecast(
            model.model, [FULL], task.longest_prompt, task.max_new_tokens + 1, job.prefill_chunk, job.memory_bytes
        )
        progress.say(f"{title}: {expected}")
        with attached(model.model, model.backend), progress.track(title, list(missing)) as ids:
            for id in ids:
                sample, of_sample = task.sample(id), {choice: stores[choice] for choice in missing[id]}
                try:
                    self.decode_prompt(sample, of_sample)
                except Exception as error:
                    if not no_answer(error):
                        raise
                    for store in of_sample.values():
                        if id not in store.lines:
                            store.append(failed_line(sample, error))

    def decode_prompt(self, sample: Sample, stores: Mapping[Choice, SampleStore]) -> None:
        """Store a line for each choice after a single prefill, whose time is included in the first line."""
        heads = [choice.heads for choice in stores]
        started = time.perf_counter()
        generations = generate_masked(self.model.model, sample.ids, heads, sample.stopping, self.job.prefill_chunk)
        for (choice, store), generation in zip(stores.items(), generations, strict=True):
            named = replace(sample, record={**sample.record, "ranking": choice.ranking, "masked": choice.count})
            seconds, started = time.perf_counter() - started, time.perf_counter()
            timing = {"batch_seconds": round(seconds, 3), "shared_by": 1}
            key = "/".join(store.folder.parts[-3:])
            line = sample_line(self.model, named, generation, self.job.protocol, sample.ids.numel())
            store.append(line | {"batch": [key], "timing": timing})
