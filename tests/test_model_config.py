"""`conf/model`: every file composes, values have ranges, and models have names."""

from typing import Annotated, Any, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

from bench.settings import job
from compresskv.model_config import ModelConfig, name_of
from tests.support.command import ROOT

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("[!_]*.yaml"))


LENGTHS = {
    "llama-3.1-8b-instruct": tuple(range(8000, 128001, 8000)),
    "mistral-7b-instruct-v0.3": tuple(range(2000, 32001, 2000)),
    "smollm2-135m": (1000, 2000, 3000, 4000),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes_with_its_own_lengths_which_are_the_papers(name):
    made = job(f"model={name}")
    assert made.model.name == name
    assert bool(made.model.path) != bool(made.model.package)
    assert made.eval.lengths == LENGTHS.get(name, made.eval.lengths) != ()


def test_the_lengths_and_depths_of_a_model():
    assert job("model=mistral-7b-instruct-v0.3").eval.depths == 10
    assert job("model.evals.niah.lengths=[700]").eval.lengths == (700,)
    assert job().eval.lengths == LENGTHS["smollm2-135m"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("window", value) for value in (1, 0, -1, 99_999_999_999, True, "many", float("nan"))),
        *(("name", value) for value in ("", "../../x", "/absolute", "a/b", "..", ".hidden", "a\0b", "x" * 300, None)),
        *((field, "") for field in ("path", "package", "revision", "sha256", "device", "dtype", "backend")),
        ("path", "a\0b"),
        ("path", 1.5),
        ("sha256", "abc"),
        ("dtype", "int3"),
        ("backend", "eager"),
        *(("device", value) for value in ("gpu", "cuda:", "cuda:x", "cuda:-1", "tpu")),
        ("chat_template", "yes"),
        ("chat_template_kwargs", [1]),
        ("trust_remote_code", 1),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValidationError):
        checked(field, value)


@pytest.mark.parametrize(
    ("field", "value", "becomes"),
    [
        ("path", 2024, "2024"),
        ("name", 2024, "2024"),
        ("package", ("a/b.part1", "c/d.part2"), ("a/b.part1", "c/d.part2")),
        ("device", "cuda:1", "cuda:1"),
        ("window", 2, 2),
        ("chat_template_kwargs", {"enable_thinking": False}, {"enable_thinking": False}),
    ],
)
def test_values_in_range_are_taken(field, value, becomes):
    assert checked(field, value) == becomes


def checked(field: str, value: Any) -> Any:
    hint = get_type_hints(ModelConfig, include_extras=True)[field]
    return TypeAdapter(Annotated[hint, None]).validate_python(value, strict=True)


def test_a_model_is_named_after_its_path(tmp_path, monkeypatch):
    home = tmp_path / "my-model"
    (home / "2024").mkdir(parents=True)
    monkeypatch.chdir(home)
    assert name_of(".") == name_of("2024/..") == name_of("../my-model/") == "my-model"
    assert name_of(2024) == "2024"
    assert name_of("org/Model-7B") == "Model-7B"
    assert name_of("/cache/models--org--Model-7B/snapshots/0123abc") == "Model-7B"
    assert name_of("models--gpt2/snapshots/0123abc/") == "gpt2"
    assert name_of("/cache/models--org--Model-7B/snapshots/0123abc/model.Q4_1.gguf") == "model.Q4_1"
    assert name_of("mine/snapshots/step-5") == "step-5"
    assert name_of("/some/where/model.Q4_1.gguf") == "model.Q4_1"
    assert job("model.path=.").model.name == "my-model"
