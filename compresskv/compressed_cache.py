"""`compressed`: a cache for `model.generate` that compresses one prompt."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from compresskv.budget import Budget, budget_from
from compresskv.calibration import Calibration
from compresskv.checking import checked
from compresskv.engine.attention import attached, own_backend
from compresskv.engine.hidden import hidden_states
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod, LayerPrefill
from compresskv.generation_defaults import ignored
from compresskv.installed import refuse_second_chunks
from compresskv.kept_tokens import KeptTokens, read
from compresskv.methods import method_for
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule


@contextmanager
def compressed(
    model: PreTrainedModel,
    method: EvictionMethod | str | EllipsisType | None = ...,
    budget: Budget | str | EllipsisType | None = ...,
    calibration: Calibration | str | Path | None = None,
    backend: str | None = None,
    generation_config: Literal["ignored", "honoured"] = "ignored",
    prompt_length: int | None = None,
    when: Literal["prompt", "prompt+decode"] = "prompt",
    interval: int = 64,
    protect: Literal["none", "prompt"] = "none",
    kept: str | Path | None = None,
) -> Iterator[LayerwiseCache]:
    """Create a cache that compresses one prompt, for `model.generate(**inputs, past_key_values=cache)`.

    transformers 5.24 and newer call the argument `cache`. Leaving the block restores the model.

    The prompt is compressed when the whole prompt has passed through the model. Pass it in one forward pass, in
    `generate` with `prefill_chunk_size`, or, if you give `prompt_length` (tokens), in any number of forward passes.
    Later tokens (generated tokens, a question, a second turn) are added unchanged, any number at a time.
    `cache.crop(length)` removes them again, and `copy.deepcopy(cache)` makes a second cache. Gradients are off inside
    the block.

    `method`: an `EvictionMethod`, or the name of a method in conf/method. A named method that needs a calibration uses
    the model's calibration, or `calibration`: a loaded calibration, a source such as "published", or the path of a
    file.

    `budget`: kept tokens per layer and KV head, including the observation window, or a share of the prompt such as
    "25%". None keeps everything.

    `generation_config`: whether `generate` applies the checkpoint's settings for greedy decoding, such as a repetition
    penalty. Arguments of `generate` always apply.

    `backend`: "sdpa", "varlen" or "flash_attention_2". None selects flash_attention_2 if the model uses it, else varlen
    if it can run, else sdpa.

    `when`="prompt+decode": after every `interval` further tokens, each KV head is evicted again, down to the number of
    prompt tokens that it kept. Between two evictions it holds up to `interval` tokens more. With `protect`="prompt",
    these evictions only drop tokens that came after the prompt. `crop` cannot undo an eviction.

    `kept`: a file of kept tokens (kept_tokens.py), instead of `method` and `budget`. The prompt must equal the prompt
    of the file, given as token ids.

    Raises `UserError` if the budget does not exceed the window; in use, for padding, batches and unsupported attention;
    on leaving the block, if the cache was not used; and if the cache is used after the block.
    """
    if backend is None:
        backend = own_backend(model)
    given = {"when": when, "interval": interval, "protect": protect}
    schedule = checked("", EvictionSchedule, given)
    if schedule.before_question:
        raise UserError("when", "pass the context first, and the question afterwards", value=when)
    if kept is not None:
        neutral = {"method": ..., "budget": ..., "calibration": None, **asdict(AFTER_PROMPT)}
        _refuse_beside_kept(neutral, {"method": method, "budget": budget, "calibration": calibration, **given})
        make = partial(FixedCache, model.config, read(kept))
    else:
        setting = _setting(model, method, budget, calibration)
        make = partial(LayerwiseCache, model.config, setting, schedule=schedule)
    with attached(model, backend), nullcontext() if generation_config == "honoured" else ignored(model):
        cache = make(prompt_length=prompt_length)
        with torch.no_grad(), _generating(model), hidden_states(model, cache), _ids_noted(model):
            yield cache
        cache.refuse_unused()


def _setting(
    model: PreTrainedModel,
    method: EvictionMethod | str | EllipsisType | None,
    budget: Budget | str | EllipsisType | None,
    calibration: Calibration | str | Path | None,
) -> Setting:
    """Return the setting for these arguments of `compressed`."""
    if method is ... or budget is ...:
        raise UserError(
            "method" if method is ... else "budget", "give both, or a file of kept tokens as kept", why="not given"
        )
    if isinstance(method, str):
        method = method_for(model, method, calibration)
        budget = None if method is None else budget
    return Setting(method, None if budget is None else budget_from(budget))


def _refuse_beside_kept(neutral: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument that is not `neutral` and contradicts a file of kept tokens."""
    for name, value in given.items():
        if value is not neutral[name] and value != neutral[name]:
            shown = value if isinstance(value, str | int) else ...
            raise UserError(name, "leave it out", value=shown, why="the file in kept already determines it")


class FixedCache(LayerwiseCache):
    """A cache that keeps the tokens listed in a file, for the prompt that the file was made with.

    `ids` [tokens], int64: the prompt's ids so far.
    """

    def __init__(self, config: PreTrainedConfig, file: KeptTokens, prompt_length: int | None = None):
        file.refuse_other_model(config)
        super().__init__(config, Setting(file.method, 1), prompt_length)
        self.file = file
        self.ids = torch.empty(0, dtype=torch.int64)

    def _evict(self, layer: LayerPrefill) -> None:
        if layer.index == 0:
            self.file.refuse_other_prompt(self.ids)
        super()._evict(layer)


@contextmanager
def _ids_noted(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, each `FixedCache` that is passed to the model records the token ids of its prompt."""

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        for given in (*args, *kwargs.values()):
            if isinstance(given, FixedCache) and isinstance(ids, Tensor) and not given.kept:
                given.ids = torch.cat([given.ids, ids[0].cpu()])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _generating(model: PreTrainedModel) -> Iterator[None]:
    """Make chunked `model.generate` set the prompt's length in its `LayerwiseCache`, inside the block.

    Raises `UserError` if `generate` continues without that cache.
    """
    own, generate = vars(model).get("generate"), getattr(model, "generate", None)
    if generate is None:  # a model without a head
        yield
        return

    def watched(*args: Any, **kwargs: Any) -> Any:
        cache = next((given for given in kwargs.values() if isinstance(given, LayerwiseCache)), None)
        if cache is None:
            return generate(*args, **kwargs)
        configs = (*args[1:2], kwargs.get("generation_config"), model.generation_config)

        def asked(name: str) -> int | None:
            return next(filter(None, [kwargs.get(name), *(getattr(each, name, None) for each in configs)]), None)

        for name in ("num_return_sequences", "num_beams"):
            if (number := asked(name) or 1) > 1:
                raise UserError(name, f"set {name}=1", value=number, why="a compressed cache holds only one answer")
        chunk = asked("prefill_chunk_size")
        inputs = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
        prompt = next((given for given in inputs if given is not None), None)
        if cache:
            if chunk := kwargs.get("prefill_chunk_size", chunk):
                refuse_second_chunks(chunk, cache.get_seq_length())
        elif prompt is not None:
            cache.refuse_shorter(prompt.shape[1])
            if chunk:
                cache.expect(prompt.shape[1])
        output = generate(*args, **kwargs)
        tokens = getattr(output, "sequences", output).shape[1]
        if (seen := cache.get_seq_length()) < tokens - 1:  # the last token is not fed
            raise UserError(
                "model",
                "generate fewer tokens, or give a longer prompt",
                value=type(model).__name__,
                why=f"after {seen} of {tokens} tokens, it dropped its compressed cache and computed all tokens again, "
                "as Phi-3 does when its RoPE changes",
            )
        return output

    vars(model)["generate"] = watched
    try:
        yield
    finally:
        del vars(model)["generate"]
        if own is not None:
            vars(model)["generate"] = own
