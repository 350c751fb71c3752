"""`import compresskv`: cheap, and with every name that it promises."""

import subprocess
import sys

import pytest

import compresskv
from tests.support.command import ROOT


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import compresskv", "torch transformers"),
        ("import compresskv.model_config", "torch"),
        ("import evals.job, evals.compose", "torch evals.niah.config"),
        ("import evals.results.published as published; published.published('x')", "torch pandas numpy"),
    ],
)
def test_cheap_imports_load_nothing_heavy(code, heavy):
    check = f"import sys; {code}; sys.exit(bool(set({heavy.split()}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, timeout=60).returncode == 0


def test_every_public_name_is_there_and_no_other():
    for name in compresskv.__all__:
        assert getattr(compresskv, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        compresskv.no_such_name  # noqa: B018
