"""The result of the conformance checks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The result of one check: a sentence about the problem, or "" if it passed."""

    check: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class Conformance:
    """The results of all checks, in order. As text, one line each."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(result.check for result in self.results if not result.passed)

    def __str__(self) -> str:
        width = max(len(result.check) for result in self.results)
        lines = []
        for result in self.results:
            lines.append(f"{'pass' if result.passed else 'FAIL'}  {result.check:{width}}  {result.problem}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__  # shown by notebooks
