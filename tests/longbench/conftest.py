"""Small LongBench records, the reference scorer, and tokenizers."""

import importlib.util

import pytest

from evals.longbench.records import Row
from evals.longbench.tasks import ALL, TASKS
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.command import ROOT

CLASSES = ("Animal", "Animal name", "Color")


@pytest.fixture(scope="session")
def reference():
    """Import bench/reference_score.py, a plain implementation of every metric that uses the original libraries."""
    specification = importlib.util.spec_from_file_location("reference_score", ROOT / "bench" / "reference_score.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def records() -> dict[str, Row]:
    """One small record for every task."""
    answers = {
        "passage_count": ("3",),
        "passage_retrieval_en": ("Paragraph 2",),
        "passage_retrieval_zh": ("段落2",),
        "trec": ("Animal name",),
        "lsht": ("Animal name",),
        "triviaqa": ("the cat", "a tabby"),
        "lcc": ("    return cat",),
        "repobench-p": ("    return cat",),
    }
    return {
        name: Row(
            row=7,
            input="那只猫在哪里？" if TASKS[name].language == "zh" else "Where is the cat?",
            context="猫在垫子上。" if TASKS[name].language == "zh" else "The cat sat on the mat.",
            answers=answers.get(name, ("on the mat",)),
            all_classes=CLASSES if TASKS[name].metric == "classification" else None,
            length=6,
        )
        for name in ALL
    }


@pytest.fixture(scope="session")
def smollm2(default_model):
    """The default model's tokenizer: byte-level, without BOS, with a system message in its chat template."""
    return default_model.tokenizer


@pytest.fixture(scope="session")
def llama3():
    """A tokenizer with Llama 3's special tokens. Like Llama 3's, its template writes the BOS and trims the prompt."""
    header = "<|start_header_id|>{role}<|end_header_id|>\n\n"
    return byte_tokenizer(
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{{ bos_token }}" + header.format(role="user") + "{{ messages[0]['content'] | trim }}<|eot_id|>"
        "{% if add_generation_prompt %}" + header.format(role="assistant") + "{% endif %}",
    )


@pytest.fixture(scope="session")
def mistral():
    """A tokenizer with a BOS that its chat template does not write."""
    return byte_tokenizer("<s>", ("[INST]", "[/INST]", "</s>"), "[INST] {{ messages[0]['content'] }} [/INST]")


@pytest.fixture(scope="session")
def base():
    """A tokenizer of a base model, without a chat template."""
    return byte_tokenizer("<s>", ("</s>",))
