"""Settings of a checkpoint's generation_config.json that change greedy decoding, except its end tokens."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from compresskv.checking import Ge, Gt, Le, Lt, MinLen, checked_value
from compresskv.errors import UserError, located, readable

GENERATION_CONFIG = "generation_config.json"

_NEUTRAL: dict[str, tuple] = {
    "sequence_bias": (),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
}
"""Settings that `generate` applies with do_sample=False, and the values (in addition to None) that disable them.

Source: `_get_logits_processor` of transformers. Lengths and beams are left out, because every evaluation sets them.
"""


_UNSERVED = (
    "constraints",
    "dola_layers",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "force_words_ids",
    "max_time",
    "penalty_alpha",
    "stop_strings",
    "token_healing",
)
"""Further settings that change greedy decoding and that evaluations do not apply."""


@dataclass(frozen=True)
class _Watermark:
    greenlist_ratio: Annotated[float, Ge(0), Le(1)] = 0.25
    bias: float = 2.0
    hashing_key: Annotated[int, Ge(0)] = 0
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: Annotated[int, Ge(1)] = 1


def _types(vocabulary: int) -> dict[str, Any]:
    """Return the type of each setting, for a vocabulary of this size. Null is always allowed."""
    token = Annotated[int, Ge(0), Lt(vocabulary)]
    some = Annotated[tuple[token, ...], MinLen(1)]
    count = Annotated[int, Ge(0), Lt(1 << 31)]
    end = Annotated[int, Ge(0), Lt(1 << 31)]  # other ids do not end a generation: see `models._check_ends`
    positive = Annotated[float, Gt(0)]
    return {
        "eos_token_id": end | Annotated[tuple[end, ...], MinLen(1)],
        "bos_token_id": int | tuple[int, ...],
        "pad_token_id": int,
        "sequence_bias": Annotated[tuple[tuple[some, float], ...], MinLen(1)],
        "repetition_penalty": positive,
        "no_repeat_ngram_size": count,
        "bad_words_ids": Annotated[tuple[some, ...], MinLen(1)],
        "min_length": count,
        "min_new_tokens": count,
        "forced_eos_token_id": token | some,
        "exponential_decay_length_penalty": tuple[count, positive],
        "suppress_tokens": tuple[token, ...],
        "begin_suppress_tokens": tuple[token, ...],
        "guidance_scale": float,
        "watermarking_config": _Watermark,
    }


def refuse_broken(folder: Path, vocabulary: int) -> None:
    """Raise `UserError`, naming the field, if the generation_config.json of `folder` cannot be applied.

    transformers would silently use config.json instead of a file that it cannot read.
    """
    file = folder / GENERATION_CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            None, "correct it, or remove it", value=file, why=f"cannot be read as JSON ({reason})"
        ) from error
    if not isinstance(values, Mapping):
        raise UserError(None, "correct it, or remove it", value=file, why=f"it holds {readable(values)}, not a mapping")
    with located(file):
        checked_settings(values, vocabulary)


def checked_settings(values: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return the known settings among `values`, converted to their types. Raises `UserError`, naming the field."""
    return {
        name: checked_value(name, kind, values[name])
        for name, kind in _types(vocabulary).items()
        if values.get(name) is not None
    }


def plain(config: GenerationConfig) -> dict[str, Any]:
    """Return all settings of `config` as JSON data."""
    return {n: v.to_dict() if hasattr(v, "to_dict") else v for n, v in config.to_dict().items()}


def refuse_unserved_settings(config: GenerationConfig) -> None:
    """Raise `UserError` for a setting of `config` that changes greedy decoding and that evaluations cannot apply."""
    values = config.to_dict()
    for name in _UNSERVED:
        neutral = 1.0 if name == "encoder_repetition_penalty" else 0
        if values.get(name) not in (None, False, neutral) or values[name] is True:
            raise UserError(
                "protocol.generation_config",
                "choose ignored",
                value="honoured",
                why=f"the model's generation_config.json sets {name}, which is not supported",
            )


def defaults_of(config: GenerationConfig) -> dict[str, Any]:
    """Return the settings of `config` that change greedy decoding, as JSON data."""
    values = plain(config)
    return {
        name: values[name]
        for name, neutral in _NEUTRAL.items()
        if values.get(name) is not None and values[name] not in neutral
    }


def processors(
    model: PreTrainedModel, settings: Mapping[str, Any], length: int, max_new_tokens: int, stop_ids: Iterable[int]
) -> LogitsProcessorList:
    """Create transformers' own logits processors for `settings`, as its `generate` does for greedy decoding.

    They take prompt and generated ids [rows, seen], int64, and logits [rows, vocabulary], float32. Raises `UserError`
    for guidance, which runs the model a second time.
    """
    if "guidance_scale" in settings:
        raise UserError(
            "protocol.generation_config",
            "choose ignored",
            value="honoured",
            why=f"{type(model).__name__} sets guidance_scale, which needs a second cache",
        )
    if not settings:
        return LogitsProcessorList()
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    with located(GENERATION_CONFIG):
        typed = checked_settings(settings, vocabulary)
    typed.pop("watermarking_config", None)  # a mapping, kept as it is
    as_read = json.loads(json.dumps({**settings, **typed}))  # transformers needs lists and floats
    ends = sorted(token for token in stop_ids if token < vocabulary)  # other ids have no logit to change
    config = GenerationConfig(**as_read, max_length=length + max_new_tokens, eos_token_id=ends or None)
    if "min_new_tokens" in settings:  # it takes precedence over min_length, as in `generate`
        config.min_length = length + config.min_new_tokens
    model._prepare_special_tokens(config, device=model.device)
    return model._get_logits_processor(config, input_ids_seq_length=length, device=str(model.device))


@contextmanager
def ignored(model: PreTrainedModel) -> Iterator[None]:
    """Disable the checkpoint's settings for greedy decoding in `generate`. Its own arguments still apply."""
    before = model.generation_config
    model.generation_config = copy.deepcopy(before)
    for name in _NEUTRAL:
        setattr(model.generation_config, name, None)
    try:
        yield
    finally:
        model.generation_config = before
