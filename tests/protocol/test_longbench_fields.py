"""The effect of each protocol field on LongBench prompts, for the models of the released code."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from compresskv.detokenise import text_of
from compresskv.models import LoadedModel
from compresskv.protocol import EvaluationProtocol
from evals.longbench.config import LongBench
from evals.longbench.evaluation import LongBenchTask
from evals.longbench.prompts import RELEASED_LONGEST, truncate_middle
from evals.longbench.tasks import TASKS
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.jobs import job
from tests.support.refusals import refused

CHATML = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n{% endif %}"
    "<|im_start|>user\n{{ messages[-1]['content'] }}<|im_end|>\n<|im_start|>assistant\n\n"
)
"""Fifty characters around the prompt; a template's last newline does not count."""
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
CONFIG = LongBench("longbench", "unused", ("qasper",), None, None, None, None)


def byte_model(name: str, chat: str) -> LoadedModel:
    """A model that is only a tokenizer: one id a byte, and no BOS, as Qwen's."""
    return LoadedModel(
        name=name,
        model=SimpleNamespace(device=torch.device("cpu")),  # type: ignore[arg-type]
        tokenizer=byte_tokenizer(chat_template=chat),
        window=32_768,
        chat_template=True,
        dtype="float32",
        backend="sdpa",
        fingerprint="",
        stop_ids=frozenset(),
    )


@pytest.fixture
def task(tmp_path):
    """Makes the qasper task, or another, of a model of this name, with one record of `length` characters."""

    def make(model: str, length: int = 30, name: str = "qasper", chat: str = CHATML, **changed: str) -> LongBenchTask:
        row = {"input": "Where?", "context": "x" * length, "answers": ["here"], "all_classes": ["a"], "length": 1}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        protocol = replace(EvaluationProtocol(), **changed)
        return LongBenchTask(CONFIG, TASKS[name], tmp_path, byte_model(model, chat), protocol)

    return make


def text(task: LongBenchTask) -> str:
    return task.render(task.records["0"]).text


@pytest.mark.parametrize("model", ["qwen2.5-7b-instruct", "Qwen2.5-14B-Instruct"])
def test_chat_wrapper_of_qwen(task, model: str) -> None:
    """The model's template with Qwen's system message; the six tasks without a chat format have none."""
    corrected, released = (text(task(model, chat_wrapper=wrapper)) for wrapper in ("template", "released"))
    assert corrected.startswith("<|im_start|>user\n")
    assert released == SYSTEM + corrected
    assert text(task(model, name="trec", chat_wrapper="released")).startswith("Please determine the type")


def test_chat_wrapper_of_other_models_is_not_qwens(task) -> None:
    for model in ("qwen2-7b-instruct", "mistral-7b-instruct-v0.3"):
        assert not text(task(model, chat_wrapper="released")).startswith("<|im_start|>")
    with refused("model.chat_template"):  # of Qwen, without a template
        text(task("qwen2.5-7b-instruct", chat="", chat_wrapper="released"))


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        ("Qwen2.5-7B-Instruct", 127_500),
        ("llama-3.1-8b-instruct", 127_500),
        ("mistral-7b-instruct-v0.3", 31_500),
        ("qwen2.5-14b-instruct", None),
    ],
)
def test_longbench_truncation(task, model: str, longest: int | None) -> None:
    """Every character is a token. Under released, the longest prompt excludes chat format and answer."""
    corrected, released = (task(model, 200_000, longbench_truncation=choice) for choice in ("window", "released"))
    room = 32_768 - TASKS["qasper"].max_new_tokens
    assert corrected.longest_prompt == room
    assert released.longest_prompt == (room if longest is None else longest + 50)
    assert (released.identity == corrected.identity) is (longest is None)
    asked = replace(released, config=replace(CONFIG, max_length=4000))
    assert asked.longest_prompt == 4000 - TASKS["qasper"].max_new_tokens


@pytest.mark.parametrize("model", ["llama-3.1-8b-instruct", "mistral-7b-instruct-v0.3", "qwen2.5-7b-instruct"])
def test_longbench_truncation_under_the_configurations_of_the_models(task, model: str) -> None:
    """`max_length` in conf/model is the authors' longest prompt, from which the answer must not be subtracted."""
    config = job(f"model={model}", "eval=longbench", "eval.data=unused", "eval.tasks=[qasper]").eval
    made = replace(task(model, 200_000, longbench_truncation="released"), config=config)
    assert made.longest_prompt == RELEASED_LONGEST[model] + 50


def test_decode_cleanup_of_predictions_and_of_truncated_prompts(task) -> None:
    """Only where the tokenizer asks for it; then the results are stored apart."""
    texts = {}
    for asks in (False, True):
        for cleanup in (False, True):
            made = task("qwen2-7b-instruct", decode_cleanup=cleanup)
            made.model.tokenizer.clean_up_tokenization_spaces = asks
            cut = truncate_middle("a != b; it 's " * 9, made.model.tokenizer, 28, cleanup)
            texts[asks, cleanup] = (cut, text_of(list(range(60)), made.model.tokenizer, cleanup))
    assert texts[True, True][0] == "a!= b; it's a!= b; it's "
    assert texts[False, True] == texts[False, False] == texts[True, False] != texts[True, True]
