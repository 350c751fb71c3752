"""Tokenise reference answers as continuations of their prompts."""

from transformers import PreTrainedTokenizerBase

from compresskv.models import LoadedModel
from evals.job import Sample

CONTEXT = 64
"""Number of tokens from the end of the prompt that are tokenised together with the reference answer."""

WORD_BEGIN = "\u2581"
"""Symbol of SentencePiece for the space before a word."""


def reference_tokens(model: LoadedModel, sample: Sample) -> list[int]:
    """Return the tokens of the reference answer of `sample` after its prompt, at most `max_new_tokens`.

    The answer is tokenised together with the end of the prompt, with a space between the two unless there is white
    space already or the tokenizer adds it. If they would share a token, for example because the prompt ends with a
    space, the prompt's tokens are kept and the answer is tokenised after a line break, or else alone.
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
    """Return whether the tokenizer adds a space before a text, as SentencePiece does."""
    first = tokenizer("x", add_special_tokens=False).input_ids[:1]
    return bool(first) and tokenizer.convert_ids_to_tokens(first)[0].startswith(WORD_BEGIN)
