"""What a checkpoint's generation_config.json asks of greedy decoding, besides its end tokens."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from compresskv.errors import UserError

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
"""The settings that `generate` applies with do_sample=False, and the values at which they do nothing, besides None.

Source: `_get_logits_processor` of transformers. What every evaluation sets by itself is left out: lengths, beams."""


def defaults_of(config: GenerationConfig) -> dict[str, Any]:
    """The settings in `config` that change greedy decoding, as JSON."""
    values = config.to_dict()
    return {
        name: values[name]
        for name, neutral in _NEUTRAL.items()
        if values.get(name) is not None and values[name] not in neutral
    }


def processors(
    model: PreTrainedModel, settings: Mapping[str, Any], length: int, max_new_tokens: int, stop_ids: Iterable[int]
) -> LogitsProcessorList:
    """transformers' own processors for these `settings`, as its `generate` makes them for greedy decoding.

    They take prompt and generated ids [rows, seen], int64, and logits [rows, vocabulary], float32. Raises `UserError`
    for guidance, which runs the model a second time.
    """
    if "guidance_scale" in settings:
        raise UserError(
            f"protocol.generation_config=honoured: {type(model).__name__} asks for guidance_scale, which needs a "
            "second cache: choose ignored"
        )
    if not settings:
        return LogitsProcessorList()
    as_read = json.loads(json.dumps(settings))  # lists, as transformers wants them
    config = GenerationConfig(**as_read, max_length=length + max_new_tokens, eos_token_id=sorted(stop_ids) or None)
    if "min_new_tokens" in settings:  # which wins over min_length, as in `generate`
        config.min_length = length + config.min_new_tokens
    model._prepare_special_tokens(config, device=model.device)
    return model._get_logits_processor(config, input_ids_seq_length=length, device=str(model.device))


@contextmanager
def ignored(model: PreTrainedModel) -> Iterator[None]:
    """`generate` applies none of the checkpoint's settings that change greedy decoding, but those it is called with."""
    before = model.generation_config
    model.generation_config = copy.deepcopy(before)
    for name in _NEUTRAL:
        setattr(model.generation_config, name, None)
    try:
        yield
    finally:
        model.generation_config = before
