"""The two protocols: each quirk of the released code is one named field (docs/audit.md describes its effect).

`corrected` is what a careful reader of the paper would implement; `released` is what the authors' code does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import yaml

from compresskv.checking import Name
from compresskv.errors import readable
from compresskv.folders import CONF

PROTOCOLS = CONF / "protocol"


@dataclass(frozen=True)
class EvaluationProtocol:
    """The fields of a protocol. The defaults are `corrected`; the comment above a field describes `released`."""

    name: Name = "corrected"

    # Methods.

    # strided: query heads k, k+H_kv, … score KV head k (SnapKV, PyramidKV, HeadKV, AdaKV; for AdaCompressKV and
    # HeadCompressKV only in the allocation)
    gqa_grouping: Literal["contiguous", "strided"] = "contiguous"
    # window: the first B−w tokens and the last w
    streaming_tail: Literal["recent", "window"] = "recent"
    # first_prompt: the schedule of the task's first sample is used for all samples
    pyramid_schedule: Literal["per_prompt", "first_prompt"] = "per_prompt"
    # none: no middle regime for B ≤ S < 2(B−w)
    pyramid_short_prompt: Literal["uniform", "none"] = "uniform"
    # false: the released arithmetic, with its overshoot and losses
    exact_budget: bool = True
    # "run" in both protocols; official: HeadKV and AdaKV pool by maximum over 7, as their own repositories do
    head_pooling: Literal["run", "official"] = "run"
    # model: the model's dtype at every stage
    score_dtype: Literal["float32", "model"] = "float32"

    # Generation.

    # honoured: the checkpoint's repetition_penalty and all other settings that `generate` applies under greedy decoding
    generation_config: Literal["ignored", "honoured"] = "ignored"
    # true: no space before punctuation and in contractions, for tokenizers that have clean_up_tokenization_spaces
    decode_cleanup: bool = False

    # Calibration.

    # count: a span token counts as often as it occurs in the span
    srh_multiplicity: Literal["indicator", "count"] = "indicator"
    # longbench: the 16 test sets
    calibration_data: Literal["held_out", "longbench"] = "held_out"

    # Prompts.

    # raw: one literal string, no chat template, no answer prefix
    niah_prompt: Literal["chat", "raw"] = "chat"
    # leaked: a BOS at every re-encoding, one right before the needle
    niah_special_tokens: Literal["none", "leaked"] = "none"
    # period_ids: the needle moves back to an id of encode(".")
    niah_sentence_rule: Literal["text", "period_ids"] = "text"
    # llama2_ids: 29889 or 869, for every tokenizer
    masking_sentence_rule: Literal["text", "llama2_ids"] = "text"
    # released: Llama's literal string with two BOS, Qwen2.5's template with Qwen's system message, no chat format for
    # other models
    chat_wrapper: Literal["template", "released"] = "template"
    # released: a fixed longest prompt for each of the authors' models, before its chat format, regardless of its window
    longbench_truncation: Literal["window", "released"] = "window"

    @property
    def label(self) -> str:
        """The name shown to users: see `protocol_label`."""
        return protocol_label(self.name, asdict(self))


def protocol_label(name: str, fields: Mapping[str, Any]) -> str:
    """Return the name shown for a protocol: `corrected`, for example, if its `fields` equal the fields in
    conf/protocol.

    If some differ, they follow the name and a star: `corrected* exact_budget=false`. Fields that are missing or
    unknown, as in files of other versions, are ignored. A name that is not in conf/protocol is returned unchanged,
    because it is a user's own protocol.
    """
    known = _fields_of(name.strip().casefold())
    differing = [
        f"{field}={readable(fields[field])}" for field in known if fields.get(field, known[field]) != known[field]
    ]
    return " ".join([f"{name}*", *differing]) if differing else name


def label_stem(label: str) -> str:
    """Return a label as part of a file name: the protocol's name, and a hash of the fields if some differ."""
    name, changed, _ = label.partition("*")
    name = name.replace("/", "-")
    return f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:8]}" if changed else name


@cache
def _fields_of(name: str) -> dict[str, Any]:
    """Return the fields of conf/protocol/<name>.yaml except its name; empty if that protocol does not exist."""
    for path in PROTOCOLS.glob("*.yaml"):
        if path.stem == name:
            return {field: value for field, value in yaml.safe_load(path.read_bytes()).items() if field != "name"}
    return {}
