"""Make NIAH prompts as the released code does, with each of its quirks as a separate option (docs/audit.md)."""

from typing import Literal

from transformers import PreTrainedTokenizerBase

from compresskv.detokenise import text_of
from compresskv.errors import UserError
from evals.haystack import Hidden, beginning, sentence_end

RAW = (
    "<|im_start|> This is a very long story book: <book> {context} </book>.\n"
    " Based on the content of the book, Question: {question}\nAnswer:"
)
"""Template of the whole prompt for every model, with a literal tag that only some tokenizers know."""

RAW_MASKING = "{context}Based on the content of the book, Question: {question}\nAnswer:"
"""Template of the whole prompt for head masking."""

LLAMA2_PERIODS = frozenset({29889, 869})
"""Llama 2's ids of a period. Head masking looks for them with every model."""

RESERVED = 200
"""Tokens of a prompt's length reserved for the text around haystack and needle."""


def hide(
    needle: str,
    haystack: str,
    tokens: int,
    depth: float,
    tokenizer: PreTrainedTokenizerBase,
    special: bool,
    sentence_rule: Literal["text", "period_ids", "llama2_ids"],
    cleanup: bool,
) -> Hidden:
    """Put `needle` into the first `tokens` tokens of `haystack`, repeated if it is too short, at `depth` (0 to 1).

    Haystack and needle are encoded, joined as token ids, and decoded again. `special`: each encoding adds its special
    tokens and no decoding removes them, which leaves two BOS at the start and one before the needle. `sentence_rule`:
    with "period_ids", the needle moves back until it follows one of the ids of encode("."); with "llama2_ids", one of
    `LLAMA2_PERIODS`; if the text has no such id, it moves to the start. `cleanup`: whether decoded text is cleaned up
    (`compresskv.detokenise`).
    """
    if tokens < 1:
        raise UserError(
            "eval.lengths", "choose a larger length", why="the shortest length leaves no room for a haystack"
        )
    needle_ids = tokenizer(needle, add_special_tokens=special).input_ids
    longest = tokens + len(needle_ids) + RESERVED
    _, encoded = beginning(haystack, longest, tokenizer, special)
    book = text_of(encoded.input_ids[:longest], tokenizer, cleanup, special=True)
    encoded = tokenizer(book, add_special_tokens=special, return_offsets_mapping=True)
    # After the clean-up, the book may have fewer tokens than requested.
    context, starts = encoded.input_ids[:tokens], [*(start for start, _ in encoded.offset_mapping), len(book)]
    if depth >= 1:
        place = len(context)
    elif sentence_rule == "text":
        end = sentence_end(book, starts[round(depth * len(context))])
        place = sum(start < end for start in starts[: len(context)])
    else:
        of_tokenizer = frozenset(tokenizer(".", add_special_tokens=special).input_ids)
        periods = of_tokenizer if sentence_rule == "period_ids" else LLAMA2_PERIODS
        place = int(round(len(context) * depth, 6))  # 0.29 · 100 is 28.999…
        while place and context[place - 1] not in periods:
            place -= 1
    text = text_of(context[:place] + needle_ids + context[place:], tokenizer, cleanup, special=True)
    actual = place / len(context)
    rule = "end" if depth >= 1 else "sentence" if place else "start"
    repeats = max(0, starts[len(context)] - 1) // len(haystack)
    start = len(text_of(context[:place], tokenizer, cleanup, special=True))
    return Hidden(text, start, actual, actual - depth, rule, repeats)
