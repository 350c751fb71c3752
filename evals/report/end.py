"""What an experiment's sweep ends with, after its tables in the terminal: its artefacts."""

from pathlib import Path

from compresskv.errors import UserError
from evals.console import screen


def write_artefacts(experiment: str, results: Path) -> None:
    """Write the artefacts of an experiment, from all of the tree `results`, and print where they are.

    Raises nothing of the user's: where there are none, such as of jobs that wait on a cluster, it says so.
    """
    from evals.report.artefacts import write

    console = screen()
    try:
        paths = write(experiment, results)
    except UserError as error:
        console.print(f"no artefacts: {error}", soft_wrap=True, markup=False)
        return
    console.print(f"artefacts: {paths[0].parent}", soft_wrap=True, markup=False)
