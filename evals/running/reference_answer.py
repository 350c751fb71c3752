"""A reference answer as the tokens that follow its prompt."""

from transformers import PreTrainedTokenizerBase

from compresskv.models import LoadedModel
from evals.job import Sample

CONTEXT = 64
"""Tokens of a prompt's end that a reference answer is tokenised with."""

WORD_BEGIN = "\u2581"
"""How SentencePiece writes the space before a word."""


def reference_tokens(model: LoadedModel, sample: Sample) -> list[int]:
    """The tokens of the reference answer of `sample` as they follow its prompt, at most as many as may be generated.

    The answer is tokenised together with the end of the prompt, a space between the two unless white space, or one
    that the tokenizer puts there by itself, parts them. Where they would share a token, as where the prompt ends with
    a space, the prompt's tokens stay, and the answer's are those behind a line break; last, those of the answer alone.
    """
    tokenizer = model.tokenizer
    end = tokenizer.decode(sample.ids[-CONTEXT:], clean_up_tokenization_spaces=False)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def following(answer: str) -> list[int]:
        joined = ((ids(before), ids(before + answer)) for before in (end, "\n", ""))
        return next(whole[len(first) :] for first, whole in joined if whole[: len(first)] == first)

    answer = following(sample.reference)
    apart = end[-1:].isspace() or sample.reference[:1].isspace()
    if answer and not apart and not tokenizer.convert_ids_to_tokens(answer[0]).startswith(WORD_BEGIN):
        answer = following(f" {sample.reference}")
    return answer[: sample.stopping.max_new_tokens]


def prepends_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text that is tokenised alone gets a space before it, as SentencePiece does."""
    first = tokenizer("x", add_special_tokens=False).input_ids[:1]
    return bool(first) and tokenizer.convert_ids_to_tokens(first)[0].startswith(WORD_BEGIN)
