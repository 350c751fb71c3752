"""`python -m notebooks [--write] [name …]`: execute these notebooks, or all, on the default model.

Prints the seconds of each. `--write` keeps the outputs in the .ipynb files, without anything that changes from run to
run. If a notebook fails, the error of its cell is printed, and the exit code is 1.
"""

import base64
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

FOLDER = Path(__file__).parent

LIMIT = 600
"""Timeout of a cell in seconds."""

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError)

CHANGING = re.compile(r"\b\d+ s\b|/s\b|GB are free|(?<![\w.])/[\w.-]+/")
"""Matches lines with seconds, rates, free memory or absolute paths."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def executed(name: str) -> nbformat.NotebookNode:
    """Execute one notebook in its folder, as Jupyter does. Raises the errors in `FAILURES`."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    client = NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    client.execute()
    return notebook


def write(name: str, notebook: nbformat.NotebookNode) -> None:
    """Write the outputs into the .ipynb: figures, tables and printed text, without progress, times and paths."""
    notebook.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _lasting(output))]
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def _lasting(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """Return the part of an output that does not change from run to run; None if all of it changes."""
    if output.output_type == "stream":
        lines = [line for line in output.text.split("\n") if not CHANGING.search(line)]
        output.text = "\n".join(lines)
        return output if output.name == "stdout" and output.text.strip() else None
    output.metadata = {}
    if image := output.data.get("image/png"):
        output.data["image/png"] = _smaller(image)
    elif CHANGING.search(output.data.get("text/plain", "")):
        return None
    return output


def _smaller(image: str) -> str:
    """Return the PNG with a palette of 64 colours."""
    smaller = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").quantize(64).save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def main(arguments: Sequence[str]) -> int:
    """Execute the notebooks that `arguments` name, or all, and return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    writing = "--write" in arguments
    chosen = [name for name in arguments if name != "--write"] or names()
    if unknown := sorted(set(chosen) - set(names())):
        print(f"error: notebooks={unknown[0]}: not found: choose from {', '.join(names())}", file=sys.stderr)
        return 2
    # The kernels import this tree, whether or not it is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    begun, failed = time.monotonic(), 0
    for name in chosen:
        started, error = time.monotonic(), ""
        try:
            notebook = executed(name)
            if writing:
                write(name, notebook)
        except FAILURES as raised:
            failed, error = failed + 1, f", failed\n{raised}"
        print(f"{name}: {time.monotonic() - started:.0f} s{error}", flush=True)
    print(f"all: {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
