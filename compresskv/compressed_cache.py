"""`compressed`: a cache for `model.generate` in which one prompt is compressed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from compresskv.budget import Budget, budget_from
from compresskv.calibration import Calibration
from compresskv.checking import checked
from compresskv.engine.attention import attached, own_backend
from compresskv.engine.hidden import hidden_states
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod
from compresskv.generation_defaults import ignored
from compresskv.installed import refuse_second_chunks
from compresskv.methods import method_for
from compresskv.schedule import EvictionSchedule


@contextmanager
def compressed(
    model: PreTrainedModel,
    method: EvictionMethod | str | None,
    budget: Budget | str | None,
    calibration: Calibration | str | Path | None = None,
    backend: str | None = None,
    generation_config: Literal["ignored", "honoured"] = "ignored",
    prompt_length: int | None = None,
    when: Literal["prompt", "prompt+decode"] = "prompt",
    interval: int = 64,
    protect: Literal["none", "prompt"] = "none",
) -> Iterator[LayerwiseCache]:
    """Create a cache that compresses one prompt, for `model.generate(**inputs, past_key_values=cache)`.

    transformers 5.24 and newer call the argument `cache`. Leaving the block restores the model.

    The prompt is compressed once all of it has passed through the model. Pass it in one forward pass, in `generate`
    with `prefill_chunk_size`, or, if you give `prompt_length` (tokens), in any number of forward passes. Later tokens
    (generated tokens, a question, a second turn) are added unchanged, any number at a time. `cache.crop(length)`
    removes them again, and `copy.deepcopy(cache)` makes a second cache. Gradients are off inside the block.

    `method`: an `EvictionMethod`, or the name of a method in conf/method. A named method that needs a calibration uses
    the model's, or `calibration`: a loaded calibration, a source such as "published", or the path of a file.

    `budget`: kept tokens per layer and KV head, including the observation window, or a share of the prompt such as
    "25%". None keeps everything.

    `generation_config`: whether `generate` applies the checkpoint's settings for greedy decoding, such as a repetition
    penalty. Arguments of `generate` always apply.

    `backend`: "sdpa", "varlen" or "flash_attention_2". None selects the last if the model uses it, else varlen if it
    can run, else sdpa.

    `when`="prompt+decode": after every `interval` further tokens, each KV head is evicted again, back to the number of
    tokens that it kept of the prompt. Between two evictions it holds up to `interval` tokens more. With
    `protect`="prompt", these evictions only drop tokens that came after the prompt. `crop` cannot undo an eviction.

    Raises `UserError` if the budget does not exceed the window; in use, for padding, batches and unsupported attention;
    on leaving the block, if the cache was not used; and if the cache is used after the block.
    """
    if backend is None:
        backend = own_backend(model)
    if isinstance(method, str):
        method = method_for(model, method, calibration)
        budget = None if method is None else budget
    kept = None if budget is None else budget_from(budget)
    given = {"when": when, "interval": interval, "protect": protect}
    schedule = checked("", EvictionSchedule, given)
    if schedule.before_question:
        raise UserError("when", "pass the context alone, and the question after it", value=when)
    with attached(model, backend), nullcontext() if generation_config == "honoured" else ignored(model):
        cache = LayerwiseCache(model.config, Setting(method, kept), prompt_length, schedule=schedule)
        with torch.no_grad(), _generating(model), hidden_states(model, cache):
            yield cache
        cache.refuse_unused()


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
                raise UserError(name, f"set {name}=1", value=number, why="a compressed cache serves one answer")
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
                why=f"it left its compressed cache after {seen} of {tokens} tokens and computed all of them anew, as "
                "Phi-3 does where its RoPE changes",
            )
        return output

    vars(model)["generate"] = watched
    try:
        yield
    finally:
        del vars(model)["generate"]
        if own is not None:
            vars(model)["generate"] = own
