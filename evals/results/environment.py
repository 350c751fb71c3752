"""Where a result says that it was made, as it may be shown."""

from typing import Any

from evals.results.fits import misfit
from evals.results.schema import Environment


def shown_environment(value: Any) -> dict[str, Any]:
    """The environment of a summary or a measurement; empty where there is none, and where it is something else."""
    return {} if misfit(Environment, value) else value
