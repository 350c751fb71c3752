"""When eviction happens: what the field calls query-aware and query-agnostic compression."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvictionSchedule:
    """`conf/config.yaml: eviction`.

    `when`: after the whole `prompt`, or after its `context`, before the question is seen.
    """

    when: Literal["prompt", "context"] = "prompt"
