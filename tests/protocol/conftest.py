"""A model with only a tokenizer, with the two properties of Mistral's tokenizer that break the released NIAH code."""

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from compresskv.models import LoadedModel
from evals.niah.config import Niah

CHARACTERS = ["\n", *string.digits, *string.ascii_letters, *string.punctuation]


def tokenizer_alone(vocabulary: int) -> Any:
    """Return a stub model, for tests that use only the tokenizer."""
    config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(vocab_size=vocabulary))
    return SimpleNamespace(device=torch.device("cpu"), config=config, generation_config=GenerationConfig())


@pytest.fixture(scope="session")
def mistral_like() -> LoadedModel:
    """A model whose tokenizer encodes every character as a token and a space as "▁", and adds a BOS.

    encode(".") gives the id of "▁.", while a period that ends a sentence is ".".
    """
    vocabulary = {token: id for id, token in enumerate(["<unk>", "<s>", "</s>", "▁", *CHARACTERS, "▁."])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", ".")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    return LoadedModel(
        name="mistral-like",
        model=tokenizer_alone(len(fast)),
        tokenizer=fast,
        window=8192,
        chat_template=True,
        dtype="float32",
        backend="sdpa",
        fingerprint="",
        stop_ids=frozenset({2}),
    )


@pytest.fixture
def niah(tmp_path: Path):
    """Return a function that makes a `Niah` with the given text as its haystack, which prompts repeat if needed."""

    def make(haystack: str = "The cat sat. A dog ran far. Is it so? ", depths: int = 10) -> Niah:
        file = tmp_path / "haystack.txt"
        file.write_text(haystack)
        return Niah(
            name="niah",
            needle="The best thing is to eat a sandwich.",
            question="What is the best thing?",
            answer="to eat a sandwich.",
            answer_prefix="The best thing is",
            needles=1,
            haystack=str(file),
            lengths=(800,),
            depths=depths,
            max_new_tokens=50,
        )

    return make
