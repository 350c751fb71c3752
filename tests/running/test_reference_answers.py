"""Reference answers are tokenised as they follow their prompts, whatever the tokenizer does with spaces."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from compresskv.chat import chat_ids
from compresskv.engine.decode import Stopping
from evals.job import Sample
from evals.running.reference_answer import reference_tokens

TEXT = ["Where is the cat? The best thing to do is eat a sandwich and sit on the mat on a sunny day.", "[/INST] x\n"]
KINDS = ["unigram-always", "unigram-first", "bpe-always", "bpe-first", "bpe-legacy"]
ANSWER = "eat a sandwich"


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    """Tokenizers as Llama 2 and Mistral have them: the space is a part of the next word, one is put before the text."""
    model, scheme = request.param.split("-", 1)
    made = Tokenizer(models.Unigram() if model == "unigram" else models.BPE(unk_token="<unk>"))
    if scheme in ("always", "first"):
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # while it learns the words
    made.decoder = decoders.Metaspace()
    special = {"vocab_size": 120, "special_tokens": ["<unk>", "<s>", "</s>", "<user>", "<answer>"]}
    kind = trainers.UnigramTrainer if model == "unigram" else trainers.BpeTrainer
    made.train_from_iterator(TEXT * 20, kind(**special, **({"unk_token": "<unk>"} if model == "unigram" else {})))
    if scheme == "legacy":
        made.pre_tokenizer = None
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        additional_special_tokens=["<user>", "<answer>"],
    )


def reference(tokenizer, prompt, answer=ANSWER, longest=100):
    ids = chat_ids(prompt, tokenizer)
    sample = Sample("x", torch.tensor(ids), Stopping(longest), lambda text: {}, reference=answer)
    return ids, reference_tokens(SimpleNamespace(tokenizer=tokenizer), sample)


@pytest.mark.parametrize("prompt", ["Where is the cat? The best thing to do is", "<user>Where is the cat? [/INST]"])
def test_it_is_the_joint_text_less_the_prompt(tokenizer, prompt):
    ids, answer = reference(tokenizer, prompt)
    assert ids + answer == chat_ids(f"{prompt} {ANSWER}", tokenizer)
    assert "▁▁" not in "".join(tokenizer.convert_ids_to_tokens(answer))


@pytest.mark.parametrize("prompt", ["Where is the cat?<answer>", "Where is the cat? [/INST]\n", "The thing to do is "])
def test_no_space_is_doubled_and_no_token_of_the_prompt_changes(tokenizer, prompt):
    """Behind a special token, a line break, or a space, which the joint text has in one token with the next word."""
    _, answer = reference(tokenizer, prompt)
    pieces = "".join(tokenizer.convert_ids_to_tokens(answer))
    assert pieces == ("▁eat▁a▁sandwich" if prompt.endswith("<answer>") else "eat▁a▁sandwich")


def test_it_is_cut_to_what_may_be_generated(tokenizer):
    assert reference(tokenizer, "The thing to do is", longest=2)[1] == reference(tokenizer, "The thing to do is")[1][:2]
    assert reference(tokenizer, "The thing to do is", answer="")[1] == []
