"""Convert token ids to text, with the clean-up that transformers applied before version 5."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CLEAN = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""Replacements, applied in this order. Source: `clean_up_tokenization` of transformers 4.45 (Apache-2.0)."""


def asks_for_cleanup(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer's configuration requests the clean-up; transformers 5 ignores this setting for
    BPE."""
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, cleanup: bool, special: bool = False) -> str:
    """Decode `ids` to text, without special tokens unless `special` is set.

    `cleanup` applies the clean-up of transformers 4.45. Without it, ids are decoded as the installed version does.
    """
    if not (cleanup and asks_for_cleanup(tokenizer)):
        return tokenizer.decode(ids, skip_special_tokens=not special)
    text = tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    for before, after in _CLEAN:
        text = text.replace(before, after)
    return text
