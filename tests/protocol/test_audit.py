"""The audit page names every field, and its effects come from paired runs that can be resumed."""

from dataclasses import fields

import pytest

from compresskv.engine import generation
from compresskv.errors import UserError
from compresskv.protocol import EvaluationProtocol
from evals.audit.__main__ import PAGE, main
from evals.audit.effects import COMPARED, ELSEWHERE, fill, paired
from evals.running import batches

FIELDS = {f.name for f in fields(EvaluationProtocol)} - {"name"}


def test_every_field_has_a_row_and_an_effect() -> None:
    assert set(COMPARED) | set(ELSEWHERE) == FIELDS
    page = PAGE.read_text(encoding="utf-8")
    for field in FIELDS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{field}` |"))
        assert f"<!-- effect:{field} -->" in row
        assert row.replace("\\|", "").count("|") == 6
    fill(page, dict.fromkeys([*FIELDS, "conditions"], ""))


def test_fill_replaces_what_is_marked_and_nothing_else() -> None:
    page = "a <!-- effect:x -->old<!-- /effect --> b\n<!-- effect:y --><!-- /effect -->"
    filled = "a <!-- effect:x -->1<!-- /effect --> b\n<!-- effect:y -->2<!-- /effect -->"
    assert fill(page, {"x": "1", "y": "2"}) == fill(filled, {"x": "1", "y": "2"}) == filled
    with pytest.raises(UserError, match="z"):
        fill(page, {"x": "1", "y": "2", "z": "3"})


def lines(*scores: float, prompt: str = "p") -> list[dict]:
    return [
        {"id": str(i), "score": score, "prediction": str(score), "prompt_sha256": prompt}
        for i, score in enumerate(scores)
    ]


def test_paired_difference() -> None:
    """Differences of the same cells, whatever their order: 10 in each, although the scores are far apart."""
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
    assert "not yet measured: there is no held_out calibration of tiny-llama" in text
    assert "none on this tokenizer: it adds no BOS" in text
    assert text.count("of 1 answers differ") > 10

    monkeypatch.setattr(batches, "generate", lambda *args: pytest.fail("a finished sample was computed again"))
    assert batches.generate is not generation.generate
    main(overrides, page)
    assert page.read_text(encoding="utf-8") == text
