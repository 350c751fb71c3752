"""What a checkpoint's generation_config.json asks of greedy decoding, besides its end tokens."""

from typing import Any

from transformers import GenerationConfig

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
