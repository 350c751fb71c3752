"""When eviction happens: before or after the question, once or repeatedly while tokens are generated."""

from dataclasses import dataclass
from typing import Annotated, Literal, cast

from compresskv.checking import Ge, Le

When = Literal["prompt", "context", "prompt+decode", "context+decode"]


def once(when: str) -> str:
    """Return a `when` without evictions while decoding. The full cache has this `when`, because it never evicts."""
    return when.removesuffix("+decode")


@dataclass(frozen=True)
class EvictionSchedule:
    """Eviction settings (`conf/config.yaml: eviction`).

    `when`: evict after the whole `prompt`, or after its `context`, before the question is seen. With `+decode`, evict
    again after every `interval` generated tokens. `protect`: with "prompt", evictions while decoding only drop
    generated tokens.
    """

    when: When = "prompt"
    interval: Annotated[int, Ge(1), Le(1_000_000)] = 64
    protect: Literal["none", "prompt"] = "none"

    @property
    def before_question(self) -> bool:
        return self.when.startswith("context")

    @property
    def decodes(self) -> bool:
        """Whether eviction continues while tokens are generated."""
        return self.when.endswith("+decode")

    def room(self, new_tokens: int, spare: int = 0, window: int = 0) -> int:
        """Return the maximum number of new tokens that a row holds at once, in addition to the prompt tokens that it
        kept.

        `spare`: number of tokens that the budget allows beyond the prompt; `window`: the method's window.
        """
        if not self.decodes:
            return new_tokens
        protected = max(window, 1) if self.protect == "prompt" else 0
        return min(new_tokens, max(spare, protected) + self.interval)

    @property
    def once(self) -> "EvictionSchedule":
        """Return the schedule without evictions while decoding, as for the full cache."""
        return EvictionSchedule(cast(When, once(self.when)))


AFTER_PROMPT = EvictionSchedule()
