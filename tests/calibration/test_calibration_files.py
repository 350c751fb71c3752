"""Calibration files are checked when they are read; errors name the path and the field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.headkv import kv_head_shares
from compresskv import calibration
from compresskv.calibration import FOLDER, choose, find, load, of_model
from compresskv.calibration.layer_errors import share
from compresskv.context import Context
from compresskv.errors import readable
from compresskv.observation import ObservationConfig
from compresskv.protocol import EvaluationProtocol
from tests.support import calibrations
from tests.support.refusals import refused

CORRECTED, RELEASED = EvaluationProtocol(), EvaluationProtocol(name="released", calibration_data="longbench")
NAN, INFINITY = float("nan"), float("inf")


def record(**changes: Any) -> dict[str, Any]:
    """A calibration of two layers of four heads."""
    whole: dict[str, Any] = {
        "heads": 2,
        "layer_scores": [0.25, 0.75],
        "head_scores": {"semantic": [[0.1, 0.2, 0.3, 0.0], [4, 3, 2, 1]]},
        "rankings": {"published": [[3, 1], [0, 2]]},
        "note": "other keys are for people",
    }
    return calibrations.record(**whole | changes)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the only calibration folder."""
    monkeypatch.setattr(calibration, "folders", lambda: (tmp_path,))

    def write(content: Any, name: str = "tiny.held_out.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_ships_is_consistent(path: Path) -> None:
    made = load(path)
    assert path.name == f"{made.model}.{made.source}.json"
    assert len(made.top_heads("semantic", made.heads)) == len(made.layer_scores)


def test_a_good_file(write) -> None:
    made = load(write(record()))
    assert made.observation == ObservationConfig()
    assert made.head_scores["semantic"][1] == (4.0, 3.0, 2.0, 1.0)
    assert made.top_heads("semantic", 2) == ((2, 1), (0, 1))
    assert made.top_heads("published", 1) == ((3,), (0,))


@pytest.mark.parametrize(
    ("changes", "field", "shown"),
    [
        ({"model": ""}, "model", "''"),
        ({"model": "../x"}, "model", "../x"),
        ({"source": None}, "source", "null"),
        ({"observation": None}, "observation", "null"),
        ({"observation": {"window": 0}}, "observation.window", "0"),
        ({"observation": {"kernel": 2}}, "observation.kernel", "2"),
        ({"observation": {"size": 8}}, "observation.size", ""),
        ({"heads": True}, "heads", "true"),
        ({"heads": 0}, "heads", "0"),
        ({"heads": 2.0}, "heads", "2.0"),
        ({"heads": 5}, "heads", ""),
        ({"layer_scores": []}, "layer_scores", "[]"),
        ({"layer_scores": "0.5"}, "layer_scores", "0.5"),
        ({"layer_scores": [1.5, -0.5]}, "layer_scores[0]", "1.5"),
        ({"layer_scores": [-0.25, 1]}, "layer_scores[0]", "-0.25"),
        ({"layer_scores": [0, 0]}, "layer_scores", ""),
        ({"layer_scores": [0.5, 0.6]}, "layer_scores", ""),
        ({"layer_scores": [25, 75]}, "layer_scores[0]", "25"),
        ({"layer_scores": [NAN, 1]}, "layer_scores[0]", "nan"),
        ({"layer_scores": ["a", 1]}, "layer_scores[0]", "a"),
        ({"layer_scores": [0.2, 0.3, 0.5]}, "head_scores.semantic", ""),
        ({"head_scores": None}, "head_scores", "null"),
        ({"head_scores": {"semantic": 3}}, "head_scores.semantic", "3"),
        ({"head_scores": {"semantic": [[1, 2], [3, NAN]]}}, "head_scores.semantic[1][1]", "nan"),
        ({"head_scores": {"semantic": [[1, 2], [3, -INFINITY]]}}, "head_scores.semantic[1][1]", "-inf"),
        ({"head_scores": {"semantic": [[1, 2], [3, -1]]}}, "head_scores.semantic[1][1]", "-1"),
        ({"head_scores": {"semantic": [[1, 2], [3, True]]}}, "head_scores.semantic[1][1]", "true"),
        ({"head_scores": {"semantic": [[1, 2, 3], [3, 4]]}}, "head_scores.semantic[1]", ""),
        ({"head_scores": {"semantic": [[1, 2], [3, 1e308]]}}, "head_scores.semantic[1][1]", "1e+308"),
        ({"head_scores": {"semantic": [[1, 2], [3, 10**400]]}}, "head_scores.semantic[1][1]", "1000"),
        ({"layer_scores": [10**400, 1]}, "layer_scores[0]", "1000"),
        ({"head_scores": {"semantic": [[], []]}}, "head_scores.semantic[0]", "[]"),
        ({"head_scores": {"semantic": [[1, 2, 3]]}}, "head_scores.semantic", ""),
        ({"rankings": {"published": [[0, 0], [1, 2]]}}, "rankings.published[0]", ""),
        ({"rankings": {"published": [[0, 1.0], [1, 2]]}}, "rankings.published[0][1]", "1.0"),
        ({"rankings": {"published": [[0, -1], [1, 2]]}}, "rankings.published[0][1]", "-1"),
        ({"rankings": {"published": [[0, 4], [1, 2]]}}, "rankings.published[0]", ""),
        ({"rankings": {"published": [[0, 1], [1]]}}, "rankings.published[1]", ""),
        ({"rankings": {"published": [["0", "1"], [1, 2]]}}, "rankings.published[0][0]", "0"),
        ({"model_fingerprint": 3}, "model_fingerprint", "3"),
        *(({name: ...}, name, "") for name in ("model", "source", "observation", "heads", "layer_scores")),
        ({"no_scores": {"x": 3}}, "no_scores.x", "3"),
    ],
)
def test_a_wrong_or_missing_field_is_named(write, changes: dict[str, Any], field: str, shown: str) -> None:
    path = write({name: value for name, value in record(**changes).items() if value is not ...})
    with refused(field, where=path) as caught:
        load(path)
    assert shown in readable(caught.value.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '{"heads": 1, "heads": 2}', "[" * 100_000, "1" * 5000])
def test_what_is_no_calibration_file(write, content: str) -> None:
    with refused("calibration"):
        load(write(content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "nowhere.json", tmp_path / "binary.json", tmp_path, Path("a\0b.json")):
        with refused("calibration"):
            load(path)


def test_where_calibrations_are_found(tmp_path: Path, monkeypatch) -> None:
    """The user's calibrations come before those of the package; names ignore case."""
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path))
    shipped = find("SmolLM2-135M", "held_out")
    assert shipped is not None
    assert shipped.model == "smollm2-135m"
    (tmp_path / "calibration").mkdir()
    path = tmp_path / "calibration" / "smollm2-135m.held_out.json"
    path.write_text(json.dumps(record(model="smollm2-135m")))
    own = find("smollm2-135m", "held_out")
    assert own is not None
    assert own.layer_scores == (0.25, 0.75)
    assert find("smollm2-135m", "published") is None


def test_what_a_setting_chooses(write) -> None:
    path = write(record())
    write(record(source="published", heads=1), "tiny.published.json")
    for setting, protocol, source in [
        ("auto", CORRECTED, "held_out"),
        ("auto", RELEASED, "published"),
        ("published", CORRECTED, "published"),
        (str(path), RELEASED, "held_out"),
    ]:
        made = choose("tiny", setting, protocol)
        assert made is not None
        assert made.source == source
    assert choose("tiny", "longbench", CORRECTED) is None
    assert choose("other", "auto", CORRECTED) is None
    with refused("calibration", value="heldout"):
        choose("tiny", "heldout", CORRECTED)
    with refused("calibration", value="foo"):
        choose("tiny", "foo", CORRECTED)


@pytest.mark.parametrize("table", [[[0, 0, 0], [0, 0, 0]], [[7, 7, 7], [7, 7, 7]], [[1, 1, 1], [2, 2, 2]]])
def test_scores_that_rank_no_head_are_refused_by_name(write, table) -> None:
    made = load(write(record(head_scores={"semantic": table, "traditional": [[1, 2, 3], [0, 0, 0]]}, rankings={})))
    with refused("calibration"):
        made.top_heads("semantic", 2)
    assert made.top_heads("semantic", 3) == ((0, 1, 2), (0, 1, 2))
    assert made.top_heads("traditional", 1) == ((2,), (0,))
    if table[0] == table[1]:
        with refused("calibration"):
            made.scores("semantic")
    else:
        assert made.scores("semantic") == ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))


def test_shares_that_underflow_keep_their_proportions() -> None:
    heads = 2000
    table = (tuple(float(1 + (head < heads // 2)) for head in range(heads)),)
    (shares,) = kv_head_shares(table, 100.0, 2, "contiguous")
    assert shares[0] == pytest.approx(1)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("errors", [[0.0, 0.0], [NAN, 1.0], [INFINITY, 1.0]])
def test_errors_that_have_no_shares_are_refused(errors) -> None:
    with refused("eval.lengths"):
        share([torch.tensor([1.0, 3.0]), torch.tensor(errors)])


def where(**changes: Any) -> Context:
    return replace(Context("tiny", layers=2, q_heads=4, kv_heads=2), **changes)


@pytest.mark.parametrize(
    ("changes", "context", "message"),
    [
        ({}, {"model": "other"}, "is not one of other"),
        ({}, {"layers": 3}, "has 2 layers, tiny has 3"),
        ({}, {"q_heads": 8}, "has scores of 4 query heads a layer, tiny has 8"),
        ({"head_scores": {}}, {"q_heads": 3}, "ranks head 3, tiny has 3 query heads a layer"),
        ({"model_fingerprint": "abc"}, {"fingerprint": "def"}, r"other weights than those of tiny \(def\)"),
    ],
)
def test_a_calibration_of_another_model_is_refused(write, changes, context, message: str) -> None:
    made = load(write(record(**changes)))
    with refused("calibration"):
        where(calibration=made, **context).calibrated()


def test_the_same_weights_may_have_another_name(write) -> None:
    path = write(record(weights={"float16": "abc"}))
    weights = {"bfloat16": "def", "float16": "abc"}
    assert where(calibration=load(path), model="renamed", weights=weights).calibrated().model == "tiny"
    assert of_model("renamed", weights) == load(path)
    assert of_model("renamed", {"bfloat16": "abc"}) is None
    assert of_model("renamed") is None
    assert of_model("Tiny") == load(path)


def test_scores_that_are_missing_say_why() -> None:
    made = find("smollm2-135m", "held_out")
    assert made is not None
    with refused("calibration"):
        made.scores("retrieval_reasoning")


@pytest.mark.parametrize("setting", ["**", "h*", "[a]"])
def test_a_source_is_a_name_and_no_pattern(write, setting) -> None:
    write(record(weights={"float16": "abc"}))
    with refused("calibration", value=setting):
        choose("tiny", setting, CORRECTED, {"float16": "abc"})
