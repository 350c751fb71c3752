"""`python -m evals results push-wandb [--results <folder>] [logger.mode=offline …]`: send finished results to W&B.

The runs are the same as with `logger=wandb`: a setting's run has the same id, so sending it again continues it. You can
also give the results folder as a word; all other words are settings of the logger, as for run.py.
"""

import sys
from collections.abc import Sequence

from compresskv.errors import UserError
from compresskv.inputs import expanded
from evals.cli import quoted
from evals.compose import composed, plug_in
from evals.job import Logger
from evals.results.measurement import measurements
from evals.results.record import records


def push(words: Sequence[str]) -> None:
    """Send every finished setting and measurement of a results folder.

    Raises `UserError` if nothing is finished, and for unknown settings of the logger.
    """
    settings = [word if "=" in word else f"paths.results={quoted(expanded(word, 'push-wandb'))}" for word in words]
    folders = [setting for setting in settings if setting.startswith("paths.results=")]
    if len(folders) > 1 or any(word.startswith("-") for word in words):
        raise UserError(
            "push-wandb", "name one results folder, and settings such as logger.mode=offline", value=" ".join(words)
        )
    if other := [setting for setting in settings if not setting.startswith("logger.") and setting not in folders]:
        raise UserError(
            other[0].partition("=")[0],
            "choose a setting of conf/logger/wandb.yaml, such as logger.project",
            why="not a setting of the logger",
        )
    config = composed("logger=wandb", *settings)
    results = expanded(config["paths"]["results"], "push-wandb")
    present = [record for record in records(results) if record.scored]
    finished = [record for record in present if record.summary and not record.problems and not record.running]
    measured = measurements(results)
    if not finished and not measured:
        rest = f"{len(present)} settings, but no valid summary" if present else "it has no results"
        why = f"nothing is finished ({rest})"
        raise UserError("push-wandb", "finish the run first, or check the folder", value=results, why=why)
    for record in present:
        if record not in finished:
            print(f"{record.name}: left out: {record.state}", file=sys.stderr)
    logger = plug_in("logger", Logger, config["logger"])
    logger.check()
    logger.log(finished, [])
    logger.log_measurements(measured)
    print(f"sent: {len(finished)} settings, {len(measured)} measurements")
