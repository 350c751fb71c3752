"""KV-cache eviction by CompressKV and by the methods that it is compared with.

The public names are imported lazily, on first use, because importing torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compresskv.installed import refuse_older

refuse_older()  # before any import that an older transformers would fail on

if TYPE_CHECKING:
    from compresskv.compressed_cache import compressed
    from compresskv.engine.attention import attached
    from compresskv.engine.decode import Stopping
    from compresskv.engine.generation import generate
    from compresskv.engine.setting import Setting
    from compresskv.eviction import EvictionMethod
    from compresskv.models import load

_HOMES = {
    "EvictionMethod": "compresskv.eviction",
    "Setting": "compresskv.engine.setting",
    "Stopping": "compresskv.engine.decode",
    "attached": "compresskv.engine.attention",
    "compressed": "compresskv.compressed_cache",
    "generate": "compresskv.engine.generation",
    "load": "compresskv.models",
}
__all__ = ["EvictionMethod", "Setting", "Stopping", "attached", "compressed", "generate", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compresskv' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
