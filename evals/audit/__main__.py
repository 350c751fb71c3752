"""`python -m evals.audit`: measure every quirk and fill in the effect column of docs/audit.md.

Arguments are overrides as for `run.py`. Finished samples are not computed again.
"""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import run as _run  # noqa: F401 (its resolvers are part of the configuration)
from compresskv import models
from compresskv.errors import UserError
from evals.audit.effects import fill, measure
from evals.job import Job, job_from
from evals.progress import Progress
from evals.results.store import write_text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "audit.md"
GRID = ("eval.lengths=[1000,1500,2000,3000]", "eval.depths=10")


def main(overrides: list[str], page: Path = PAGE) -> None:
    """Rewrite `page`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        released = compose("config", ["protocol=released"]).protocol

        def make_job(method: str, budget: int, field: str | None) -> Job:
            chosen = [*GRID, *overrides, f"method={method}", f"budget={budget}"]
            if field:
                chosen += [f"protocol.{field}={_quoted(released[field])}", f"protocol.name=corrected-{field}"]
            return job_from(OmegaConf.to_container(compose("config", chosen), resolve=True))

        model = models.load(make_job("full", 128, None).model)
        effects = measure(model, make_job, Progress())
    write_text(page, fill(page.read_text(encoding="utf-8"), effects))


def _quoted(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished samples are safe, the same command goes on from there")
