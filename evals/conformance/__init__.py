"""Check that a method fulfils the contract of all methods: `python -m evals conformance method=<name>`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compresskv.context import Context
    from compresskv.eviction import EvictionMethod
    from evals.conformance.checks import Conformance


def check(
    method: str | Callable[[Context], EvictionMethod],
    *overrides: str,
    budget: int = 256,
    config_dir: str | Path | None = None,
) -> Conformance:
    """Run every check of `method` at `budget` (tokens) on tiny random models. Print the result to read it.

    `method` is a name, as in `method=<name>`, or a function that creates a method from a `Context`. With a name, you
    can add `overrides` such as `method.scorer.gamma=3`, and your configuration folder `config_dir`. Raises `UserError`
    for a bad configuration.
    """
    from compresskv.errors import UserError
    from compresskv.methods import build
    from evals.compose import job
    from evals.conformance.checks import all_checks
    from evals.conformance.subject import Subject

    if not isinstance(method, str):
        return all_checks(Subject(method, budget))

    chosen = job(f"method={method}", f"budget={budget}", *overrides, config_dir=config_dir)
    if chosen.method.keeps_everything:
        raise UserError(
            "method", "name another method", value=method, why="it never evicts, so the checks do not apply"
        )

    def make(context: Context) -> EvictionMethod:
        made = build(chosen.method, context)
        assert made is not None
        return made

    return all_checks(Subject(make, budget, chosen.observation, chosen.protocol))
