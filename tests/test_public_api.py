"""`import compresskv`: cheap, and with every name that it promises."""

import subprocess
import sys

import pytest

import compresskv
from tests.support.command import ROOT

CHEAP = {
    "import compresskv": "torch transformers",
    "import compresskv.model_config": "torch",
    "import evals.results.published as published; published.published('x')": "torch pandas numpy",
    "import evals.job, evals.compose": "torch evals.niah.config",
}
"""What is imported, one after the other, and what is not loaded by then."""


def test_cheap_imports_load_nothing_heavy():
    checks = [f"{code}; assert not set({heavy.split()}) & set(sys.modules)" for code, heavy in CHEAP.items()]
    done = subprocess.run([sys.executable, "-c", "\n".join(["import sys", *checks])], cwd=ROOT, timeout=60)
    assert done.returncode == 0


def test_every_public_name_is_there_and_no_other():
    for name in compresskv.__all__:
        assert getattr(compresskv, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        compresskv.no_such_name  # noqa: B018
