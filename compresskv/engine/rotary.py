"""RoPE that depends on the length of the text, such as longrope and dynamic NTK.

Each forward pass gets the frequencies of its own text, independent of earlier texts. Every chunk of a prompt gets the
frequencies of the whole prompt. Later tokens get the frequencies of the text so far, as in transformers' own
`generate`. This file calls the rotary modules to find the modules that depend on the length, and the lengths where they
change.
"""

import inspect
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compresskv.engine.cache import EvictedCache
from compresskv.errors import PromptError, UserError

LONGEST = 1 << 27
"""Frequencies that are the same up to this many tokens count as independent of the length."""


@dataclass(frozen=True)
class Boundary:
    """Texts of up to `length` tokens share their frequencies.

    Longer texts share other frequencies if the model `switches`; otherwise each length has its own frequencies.
    """

    length: int
    switches: bool

    def regime(self, length: int) -> int:
        """Return a number that is equal for two lengths with the same frequencies."""
        if length <= self.length:
            return 0
        return self.length + 1 if self.switches else length


class LengthRope:
    """The rotary `modules` of a model that depend on the length, and the lengths at which they change."""

    def __init__(self, model: PreTrainedModel):
        self.name = type(model).__name__
        found = {module: _boundaries(module) for module in model.modules() if _rotates(module)}
        self.modules = [module for module, boundaries in found.items() if boundaries]
        self.boundaries = sorted(set().union(*found.values()), key=lambda boundary: boundary.length)
        # Length of the whole text, if more is known than a forward's positions: from `spanning`, and from the cache.
        self.text = self.prompt = 0

    def regime(self, length: int) -> tuple[int, ...]:
        return tuple(boundary.regime(length) for boundary in self.boundaries)

    def crossed(self, before: int, after: int) -> int | None:
        """Return the length at which a growing text switches its frequencies and invalidates its cache; None if no
        length does."""
        for boundary in self.boundaries:
            if boundary.switches and boundary.regime(before) != boundary.regime(after):
                return boundary.length
        return None

    def install(self, model: PreTrainedModel, until: ExitStack) -> None:
        """Keep the frequencies right until `until` is closed."""
        for parent in model.modules():
            if any(child in self.modules for child in parent.children()):
                until.callback(parent.register_forward_pre_hook(self._note_cache, with_kwargs=True).remove)
        for module in self.modules:
            until.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            until.callback(module.register_forward_hook(_without_last).remove)
            until.callback(_forget, module)

    def _note_cache(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = [given for given in (*args, *kwargs.values()) if isinstance(given, EvictedCache)]
        self.prompt = max((cache.prompt_length or 0 for cache in caches), default=0)

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Reset the module, and append the last position of the whole text, from which the module takes its length."""
        call = inspect.signature(module.forward).bind(*args, **kwargs)
        positions = call.arguments["position_ids"]
        length = self._length(positions)
        _forget(module)
        last = positions.new_full((*positions.shape[:-1], 1), length - 1)
        call.arguments["position_ids"] = torch.cat([positions, last], -1)
        return call.args, call.kwargs

    def _length(self, positions: Tensor) -> int:
        """Return the length of the text that ends with, or spans, these `positions` [..., rows, new]."""
        known = max(self.text, self.prompt)
        ends = [max(end + 1, known) for end in positions.amax(-1).flatten().tolist()]
        if len({self.regime(end) for end in ends}) > 1:
            raise UserError(
                "prompts",
                "choose prompts of equal length",
                why=f"texts of {min(ends)} and {max(ends)} tokens cannot decode together in {self.name}, whose RoPE "
                "depends on the length",
            )
        start, end = int(positions.min()), max(ends)
        if start and (at := self.crossed(max(start, known), end)):
            raise PromptError(
                "prompt",
                "generate fewer tokens, or start with a longer prompt",
                why=f"the text in the cache grows from {start} to {end} tokens, but {self.name} changes its RoPE after "
                f"{at} tokens, so the cached keys become invalid",
            )
        return end


_active: WeakKeyDictionary[PreTrainedModel, LengthRope] = WeakKeyDictionary()


@contextmanager
def steady(model: PreTrainedModel) -> Iterator[None]:
    """Make frequencies depend only on the text of each forward, inside the block. `attached` does this."""
    if model in _active:
        yield
        return
    with ExitStack() as until:
        rope = LengthRope(model)
        rope.install(model, until)
        _active[model] = rope
        until.callback(_active.pop, model)
        yield


@contextmanager
def spanning(model: PreTrainedModel, length: int) -> Iterator[None]:
    """Treat each forward of the attached `model` inside the block as part of a text of at least `length` tokens."""
    rope = _active[model]
    before, rope.text = rope.text, max(rope.text, length)
    try:
        yield
    finally:
        rope.text = before


def regime(model: PreTrainedModel, length: int) -> tuple[int, ...]:
    """Return a key that is equal for two lengths with the same RoPE in the attached `model`; mostly empty."""
    return _active[model].regime(length)


def uncrossed(model: PreTrainedModel, length: int, new: int) -> int:
    """Return the longest prompt of up to `length` tokens after which `new` tokens fit without a switch of the RoPE."""
    at = _active[model].crossed(length, length + new - 1)
    return length if at is None else max(at + 1 - new, 1)


def depends_on_length(model: PreTrainedModel) -> bool:
    """Return whether the RoPE of `model` depends on the length of the text."""
    return bool((_active.get(model) or LengthRope(model)).boundaries)


def beyond_boundaries(model: PreTrainedModel) -> int | None:
    """Return a text length that is beyond all changes of the RoPE; None for a model without RoPE."""
    if not any(_rotates(module) for module in model.modules()):
        return None
    trained = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 0)
    return 2 * max(trained, *(boundary.length for boundary in LengthRope(model).boundaries), 1024)


def refuse_crossing(model: PreTrainedModel, length: int, new: int) -> None:
    """Raise `PromptError` if `new` tokens after a prompt of `length` would make the attached `model` switch its RoPE.

    The last new token is not fed. At a switch, transformers' own `generate` recomputes its whole cache, or mixes
    frequencies. Evicted tokens cannot be recomputed.
    """
    if at := _active[model].crossed(length, length + new - 1):
        raise PromptError(
            "max_new_tokens",
            f"use prompts of at most {max(at + 1 - new, 1)} tokens, or of more than {at}",
            value=new,
            why=f"after a prompt of {length} tokens, the text may exceed {at} tokens, where {_active[model].name} "
            "changes its RoPE, which makes the cached keys invalid",
        )


def _rotates(module: nn.Module) -> bool:
    """Return whether this is a rotary embedding that takes positions."""
    return bool(_kinds(module)) and "position_ids" in inspect.signature(module.forward).parameters


def _kinds(module: nn.Module) -> list[dict[str, str]]:
    """Return the arguments for each set of frequencies of a rotary module: a layer type, or no argument if the module
    has one set."""
    names = [name for name, buffer in module.named_buffers(recurse=False) if not buffer.is_meta]
    types = [name.removesuffix("inv_freq").removesuffix("_") for name in names if name.endswith("inv_freq")]
    return [{"layer_type": kind} if kind else {} for kind in types if not kind.endswith("original")]


def _boundaries(module: nn.Module) -> set[Boundary]:
    """Return the lengths at which the frequencies of a rotary module change."""
    found = set()
    for kind in _kinds(module):
        try:
            short, long = _rotation(module, kind, 2), _rotation(module, kind, LONGEST)
        except Exception:  # takes other inputs than positions [rows, new], such as the positions of an image
            return set()
        if torch.equal(short, long):
            continue
        lengths = range(2, LONGEST)
        at = bisect_left(lengths, True, key=lambda length: not torch.equal(_rotation(module, kind, length), short))
        first = lengths[at]
        switches = torch.equal(_rotation(module, kind, first), _rotation(module, kind, first + 1))
        found.add(Boundary(first - 1, switches))
    _forget(module)
    return found


@torch.no_grad()
def _rotation(module: nn.Module, kind: dict[str, str], length: int) -> Tensor:
    """Return a rotary module's flat output for position 1 in a text of `length` tokens, after a reset."""
    _forget(module)
    out = module.forward(
        _like(module), position_ids=torch.tensor([[1, length - 1]], device=_like(module).device), **kind
    )
    return torch.cat([part[..., :1, :].flatten() for part in (out if isinstance(out, tuple) else (out,))])


@torch.no_grad()
def _forget(module: nn.Module) -> None:
    """Pass a text of one token to a rotary module, which resets it to the frequencies of short texts."""
    for kind in _kinds(module):
        module.forward(
            _like(module), position_ids=torch.zeros(1, 1, dtype=torch.int64, device=_like(module).device), **kind
        )


def _like(module: nn.Module) -> Tensor:
    """Return a tensor whose dtype and device a rotary module uses for its output: [1, 1, 1], float32."""
    device = next(buffer.device for name, buffer in module.named_buffers(recurse=False) if name.endswith("inv_freq"))
    return torch.zeros(1, 1, 1, device=device)


def _without_last(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Remove the output for the appended position."""
    if isinstance(output, tuple):
        return tuple(part[..., :-1, :] for part in output)
    return output[..., :-1, :]
