"""The two protocols: each quirk of the released code is one named field (docs/audit.md says what each changes).

`corrected` is what a careful reader of the paper would implement; `released` is what the authors' code does.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """The defaults are `corrected`; each comment names the other choice, `released`, and where it applies."""

    name: str = "corrected"
    # Methods.
    gqa_grouping: str = "contiguous"  # strided: query heads k, k+H_kv, … score KV head k (SnapKV, PyramidKV)
    streaming_tail: str = "recent"  # window: the first B−w tokens and the last w
    pyramid_schedule: str = "per_prompt"  # first_prompt: the schedule of the task's first sample serves all
    pyramid_short_prompt: str = "uniform"  # none: no middle regime for B ≤ S < 2(B−w)
    exact_budget: bool = True  # false: the released arithmetic, with its overshoot and losses
    head_pooling: str = "run"  # official: HeadKV and AdaKV pool by maximum over 7
    score_dtype: str = "float32"  # model: the model's dtype at every stage
    # Calibration.
    srh_multiplicity: str = "indicator"  # count: a span token counts as often as it occurs in the span
    calibration_data: str = "held_out"  # longbench: the 16 test sets
    # Prompts.
    niah_prompt: str = "chat"  # raw: one literal string, no chat template, no answer prefix
    niah_special_tokens: str = "none"  # leaked: a BOS at every re-encoding, one right before the needle
    niah_sentence_rule: str = "text"  # period_ids: the needle backs up to an id of encode(".")
    masking_sentence_rule: str = "text"  # llama2_ids: 29889 or 869, whatever the tokenizer
    chat_wrapper: str = "template"  # released: Llama's literal string with two BOS, none for other models


METHOD_FIELDS = (
    "gqa_grouping",
    "streaming_tail",
    "pyramid_schedule",
    "pyramid_short_prompt",
    "exact_budget",
    "head_pooling",
    "score_dtype",
)
"""The fields that methods read; the others choose calibrations and prompts."""
