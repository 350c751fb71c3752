"""What `make` asks for: the GPU tests need no network where a Python has what they import."""

import shutil
import subprocess

import pytest

from tests.support.command import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def python(tmp_path):
    """A Python that notes its arguments, and whether it has the packages."""

    def stub(name, has):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $@" >>{tmp_path}/calls\n[ "$1" != -c ] || exit {0 if has else 1}\n')
        path.chmod(0o755)
        return path

    return stub


def run(tmp_path, own, other):
    """Run the GPU tests where these two Pythons are; returns the command and the calls of both."""
    command = ["make", "test-gpu", f"BIN={own.parent}", f"PYTHON={other}", "READY=/nowhere/.ready"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done, (tmp_path / "calls").read_text()


@pytest.mark.parametrize("of_venv", [True, False])
def test_the_gpu_tests_run_in_a_python_that_has_what_they_need(python, tmp_path, of_venv):
    done, calls = run(tmp_path, python("bin/python", has=of_venv), python("python3", has=True))
    assert done.returncode == 0, done.stderr
    last = calls.splitlines()[-1]
    assert last.split()[0] == ("bin/python" if of_venv else "python3")
    assert "pytest -m gpu" in last


def test_without_one_the_environment_is_made_first(python, tmp_path):
    done, calls = run(tmp_path, python("bin/python", has=False), python("python3", has=False))
    assert "python3 -m venv" in calls or done.returncode
    assert calls.index("-c import") < calls.index("-m venv")
