"""A setting: one method at one budget."""

from dataclasses import dataclass

from compresskv.budget import Budget, Share
from compresskv.eviction import EvictionMethod, Scorer, needs_answer


@dataclass(frozen=True)
class Setting:
    """One method at one budget (tokens, the observation window included, or a share of the prompt).

    A budget of None keeps the whole prompt, and so does a setting without a method, which has no budget.
    """

    method: EvictionMethod | None
    budget: Budget | None

    def __post_init__(self) -> None:
        if self.budget is not None:
            if self.method is None:
                raise ValueError(f"budget={self.budget} without a method: the full cache has no budget")
            if isinstance(self.budget, int):
                self.method.check(self.budget)

    @property
    def window(self) -> int:
        """Prompt tokens at the end that are always kept; without a method, 1."""
        return 1 if self.method is None else self.method.window

    def tokens(self, length: int) -> int | None:
        """The budget of a prompt of `length` tokens, in tokens."""
        return self.budget.tokens(length, self.window) if isinstance(self.budget, Share) else self.budget

    def scorers(self, length: int | None, decodes: bool = False) -> list[Scorer]:
        """The scorers of a prompt of `length` tokens (None: not known yet); empty if it is kept whole.

        `decodes`: eviction continues while decoding, so a prompt that is kept whole does not suffice.
        """
        whole = self.budget is None or (not decodes and length is not None and self.keeps_all(length))
        return [] if self.method is None or whole else [self.method.scorer]

    @property
    def needs_answer(self) -> bool:
        """Whether it evicts by the full cache's answer."""
        return self.method is not None and needs_answer(self.method.scorer)

    def keeps_all(self, length: int) -> bool:
        """A prompt that fits the budget, or the window, is kept whole in every layer."""
        budget = self.tokens(length)
        return budget is None or length <= max(budget, self.window)


FULL = Setting(None, None)
"""The full cache: nothing is evicted."""
