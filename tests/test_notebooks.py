"""Every notebook is a pair of a script and an executed .ipynb, which `make notebooks` writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT

WITHOUT = "jupytext or nbclient is not installed: pip install -e '.[notebooks]'"
jupytext = pytest.importorskip("jupytext", reason=WITHOUT)
runner = pytest.importorskip("notebooks.__main__", reason=WITHOUT)

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
ABSOLUTE = re.compile(r"""(?<![\w.<>/~:-])(/(home|Users|root|tmp|work|data|mnt|scratch|opt|var)\b|[A-Z]:\\)""")


def test_the_seven_are_there():
    wanted = ["ablations", "add_a_method", "budgets", "heads", "quickstart", "results", "your_own_model"]
    assert wanted == NAMES == runner.names()


@pytest.mark.parametrize("name", NAMES)
def test_script_and_notebook_are_a_pair_without_outputs_that_any_python_3_runs(name):
    script = jupytext.read(FOLDER / f"{name}.py")
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (script, notebook)]
    assert cells[0] == cells[1], f"run: jupytext --to ipynb notebooks/{name}.py"
    assert script.metadata["kernelspec"] == notebook.metadata["kernelspec"] == runner.KERNEL
    assert "language_info" not in notebook.metadata  # names the version that last ran it


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_a_title_figures_and_what_not_to_conclude_and_is_small(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs), f"run: python -m notebooks --write {name}"
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert texts[0].startswith("# ")
    assert "Do not conclude" in texts[-1]


def test_no_path_of_a_machine():
    assert all(map(ABSOLUTE.search, ("'/home/me/x'", "(/tmp/y)", "C:\\\\data")))
    for path in FOLDER.glob("*.[pi]*"):
        assert not ABSOLUTE.search(path.read_text()), path


def test_an_unknown_name_is_refused(capsys):
    assert runner.main(["no_such"]) == 2
    assert "ablations" in capsys.readouterr().err


@pytest.mark.parametrize(("chosen", "backend"), [("svg", "svg"), (None, "agg")])
def test_figures_leave_a_notebook_its_backend(chosen, backend):
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"MPLBACKEND": chosen} if chosen else {}
    code = "import evals.niah.heatmap, matplotlib; print(matplotlib.get_backend())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.stdout.strip().lower() == backend


def write(folder: Path, name: str, code: str) -> None:
    for suffix in ("py:percent", "ipynb"):
        path = folder / f"{name}.{suffix.partition(':')[0]}"
        jupytext.write(jupytext.reads(code, fmt="py:percent"), path, fmt=suffix)


def test_the_cell_that_fails_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    write(tmp_path, "broken", "# %%\nthree = 3\n\n# %%\nthree / 0\n")
    write(tmp_path, "sound", "# %%\nassert 1 + 1 == 2\n")
    assert runner.main([]) == 1
    out = capsys.readouterr().out
    assert "broken: " in out
    assert "three / 0" in out
    assert "ZeroDivisionError" in out
    assert re.search(r"^sound: \d+ s$", out, re.MULTILINE)
    assert runner.main(["sound"]) == 0


def test_what_changes_from_run_to_run_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    code = "import sys\nprint('a result')\nprint('done: 3 s, /home/me/x')\nprint('10/150', file=sys.stderr)\n1 + 1"
    write(tmp_path, "sound", f"# %%\n{code}\n")
    assert runner.main(["--write", "sound"]) == 0
    first = (tmp_path / "sound.ipynb").read_text()
    (cell,) = json.loads(first)["cells"]
    texts = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
    assert [text for of_output in texts for text in of_output] == ["a result\n", "2"]
    assert runner.main(["--write", "sound"]) == 0
    assert (tmp_path / "sound.ipynb").read_text() == first
