"""The audit page names every field, and its effects come from paired runs that can be resumed."""

import re
from dataclasses import fields
from typing import Any

import pytest

from compresskv import models
from compresskv.engine import generation
from compresskv.eviction import PromptShape
from compresskv.methods import build
from compresskv.protocol import EvaluationProtocol
from evals import compose
from evals.audit import selector
from evals.audit.__main__ import PAGE, main
from evals.audit.effects import COMPARED, ELSEWHERE, fill, key, paired
from evals.niah.evaluation import NiahTask
from evals.progress import Progress
from evals.running import batches
from evals.running.outcome import record_of
from evals.running.tasks import run_task
from tests.methods.construction import context, kept, random_layers
from tests.support.refusals import refused

FIELDS = {f.name for f in fields(EvaluationProtocol)} - {"name"}


def test_every_field_has_a_row_and_an_effect() -> None:
    assert set(COMPARED) | set(ELSEWHERE) == FIELDS
    page = PAGE.read_text(encoding="utf-8")
    for field in FIELDS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{field}` |"))
        assert f"<!-- effect:{field} -->" in row
        assert row.replace("\\|", "").count("|") == 6
    fill(page, dict.fromkeys([*FIELDS, "conditions", "selector"], ""))


def test_fill_replaces_what_is_marked_and_nothing_else() -> None:
    page = "a <!-- effect:x -->old<!-- /effect --> b\n<!-- effect:y --><!-- /effect -->"
    filled = "a <!-- effect:x -->1<!-- /effect --> b\n<!-- effect:y -->2<!-- /effect -->"
    assert fill(page, {"x": "1", "y": "2"}) == fill(filled, {"x": "1", "y": "2"}) == filled
    with refused("z"):
        fill(page, {"x": "1", "y": "2", "z": "3"})


def lines(*scores: float, prompt: str = "p") -> list[dict]:
    return [
        {"id": str(i), "score": score, "prediction": str(score), "prompt_sha256": prompt}
        for i, score in enumerate(scores)
    ]


def test_paired_difference() -> None:
    """Differences of the same cells, in any order: 10 in each, although the scores are far apart."""
    before, after = lines(0, 30, 60, 90), lines(10, 40, 70, 100)[::-1]
    assert paired(before, after) == "45.0 → 55.0, **+10.0** [+10.0, +10.0]; 4 of 4 answers differ"
    assert paired(after, before) == "55.0 → 45.0, **−10.0** [−10.0, −10.0]; 4 of 4 answers differ"
    assert paired(before, before) == "45.0 → 45.0, **0.0** [0.0, 0.0]; 0 of 4 answers differ"
    assert "2 prompts and 0 of 2 answers" in paired(lines(1, 2), lines(1, 2, prompt="q"))


def test_the_audit_runs_and_resumes(checkpoint, tmp_path, monkeypatch) -> None:
    """On a tiny model without a calibration; the second time nothing is generated."""
    page = tmp_path / "audit.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    overrides = [
        f"model.path={checkpoint}",
        f"paths.results={tmp_path / 'results'}",
        "eval.lengths=[300]",
        "eval.depths=[20]",
        "eval.max_new_tokens=4",
    ]
    main(overrides, page)
    text = page.read_text(encoding="utf-8")
    assert "Not measured yet" not in text
    assert "not yet measured: the method needs a held_out calibration of tiny-llama" in text
    assert "none on this tokenizer: it adds no BOS" in text
    assert text.count("of 1 answers differ") > 10

    monkeypatch.setattr(batches, "generate", lambda *_, **__: pytest.fail("a finished sample was computed again"))
    assert batches.generate is not generation.generate
    main(overrides, page)
    assert page.read_text(encoding="utf-8") == text


def test_what_the_selector_adds() -> None:
    """R = U + (R − U) over strided allocation; C over contiguous; the same for each set of semantic heads."""
    jobs = selector.arms(compose.job)["adakv"]
    scores = {("strided", "strided"): 10, ("contiguous", "strided"): 30, ("contiguous", "contiguous"): 50}
    for place, name in enumerate(selector.SELECTORS.values()):
        more = zip(("strided", "contiguous", "layer_error"), (35, 40, 45), strict=True)
        scores |= {(name, allocation): score + place for allocation, score in more}
    finished = {key(jobs[arm]): lines(score, score) for arm, score in scores.items()}
    groups, *by_heads = selector.tell("adakv", jobs, finished).split("<br>")

    def differences(text: str) -> list[str]:
        return re.findall(r"\*\*(.*?)\*\*", text)

    assert differences(groups) == ["+20.0"]
    assert [differences(each) for each in by_heads] == [
        ["+25.0", "+5.0", "−10.0", "+5.0"],
        ["+26.0", "+6.0", "−9.0", "+5.0"],
        ["+27.0", "+7.0", "−8.0", "+5.0"],
    ]


def test_arms_differ_in_one_part_only() -> None:
    """Both sides of a line give every KV head the same number of tokens, but other tokens."""
    shape = PromptShape(2, 2, 200, 4)
    layers = random_layers(shape, 3, seed=1)
    where = context(shape, 3)
    sets = selector.SELECTORS.values()
    for baseline, jobs in selector.arms(compose.job).items():
        made = {arm: build(job.method, where) for arm, job in jobs.items()}
        kept_by = {arm: kept(method, layers, 60) for arm, method in made.items()}  # type: ignore[arg-type]
        sizes = {arm: [[len(head) for head in layer] for layer in heads] for arm, heads in kept_by.items()}
        pairs = [selector.GROUPS, *(arms for name in sets for arms in list(selector.lines(name).values())[:3])]
        for before, after in pairs:
            assert sizes[before] == sizes[after], (baseline, before, after)
            assert kept_by[before] != kept_by[after], (baseline, before, after)
        assert sizes["semantic", "strided"] != sizes["semantic", "contiguous"]
        assert len({key(job) for job in jobs.values()}) == len(jobs)
    assert sizes["semantic", "layer_error"] != sizes["semantic", "contiguous"]


def test_the_selectors_arms_run(checkpoint, calibration_file, tmp_path) -> None:
    overrides = [
        f"model.path={checkpoint}", f"calibration={calibration_file}", f"paths.results={tmp_path}",
        "eval.lengths=[300]", "eval.depths=[20,60]", "eval.max_new_tokens=4",
    ]  # fmt: skip
    config = compose.composed(*overrides)

    def make(*changes: str) -> Any:
        changed = compose.composed(*changes)
        return compose.job_from(config | {name: changed[name] for name in ("method", "budget")})

    jobs = selector.arms(make)
    model = models.load(jobs["headkv"]["strided", "strided"].model)
    for baseline, by_arm in jobs.items():
        assert selector.refusal(model, list(by_arm.values())) is None
        task = NiahTask(next(iter(by_arm.values())).eval, model, EvaluationProtocol())  # type: ignore[arg-type]
        entries = run_task(model, list(by_arm.values()), {task.protocol: task}, Progress(), pytest.fail)
        records = [record_of(entry) for entry in entries]
        finished = {(record.protocol, record.method, record.budget): record.covered for record in records}
        assert selector.tell(baseline, by_arm, finished).count("**") == 2 * (1 + 3 * (3 if baseline == "headkv" else 4))
