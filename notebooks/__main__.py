"""`python -m notebooks [name …]`: execute these notebooks, or all, on the default model.

Prints the seconds of each and does not change the files. If one fails, the error of its cell is shown and the exit code
is 1.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).parent

LIMIT = 600
"""Seconds that a cell may take."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def failure(name: str) -> str:
    """Execute one notebook in its folder, as Jupyter does; returns the error, or an empty string."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    client = NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    return ""


def main(chosen: Sequence[str]) -> int:
    """Execute the `chosen` notebooks, or all; returns the exit code."""
    if unknown := sorted(set(chosen) - set(names())):
        print(f"error: notebooks {unknown[0]}: not found: choose one of {', '.join(names())}", file=sys.stderr)
        return 2
    # The kernels import this tree, whether or not it is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    begun, failed = time.monotonic(), 0
    for name in chosen or names():
        started = time.monotonic()
        error = failure(name)
        failed += bool(error)
        print(f"{name}: {time.monotonic() - started:.0f} s" + (f", failed\n{error}" if error else ""), flush=True)
    print(f"all: {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
