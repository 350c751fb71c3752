"""Hidden states for scorers that read them: the inputs of each attention module, for one layer at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compresskv.engine.cache import EvictedCache, EvictedLayer
from compresskv.eviction import HiddenStates


@contextmanager
def hidden_states(model: PreTrainedModel, cache: EvictedCache) -> Iterator[None]:
    """Give the layers of `cache` the prompt's hidden states, inside the block, if one of their scorers needs these
    states.

    Otherwise no hook is registered. A layer frees the states as soon as the whole prompt has passed.
    """
    with ExitStack() as until:
        if any(layer.wants_hidden for layer in cache.evicting):
            rotary = getattr(model.get_decoder(), "rotary_emb", None)

            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                for given in (*args, *kwargs.values()):
                    if isinstance(given, EvictedCache):  # `cache` or its copy
                        _keep(given, module, kwargs, rotary)

            # Some decoder layers have a `layer_idx`, too. Their attention module runs later, and its input replaces the
            # input of the decoder layer.
            for module in model.modules():
                if hasattr(module, "layer_idx"):
                    until.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield


def _keep(cache: EvictedCache, module: Any, kwargs: dict[str, Any], rotary: Any) -> None:
    layer = cache.layers[module.layer_idx]
    states, angles = kwargs.get("hidden_states"), kwargs.get("position_embeddings")
    if not isinstance(layer, EvictedLayer) or layer.rows is not None or states is None or angles is None:
        return
    if layer.prompt_length in (None, states.shape[1]):
        cos, sin = angles
        layer.hidden = HiddenStates(states[0], cos[0], sin[0], module, rotary)
