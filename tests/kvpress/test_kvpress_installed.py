"""kvpress absent, too old, and imported without a trace."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from baselines.kvpress import installed
from evals.compose import job
from tests.support.command import ROOT
from tests.support.kvpress_here import kvpress_or_skip
from tests.support.refusals import refused


@pytest.mark.parametrize("found", [None, "0.5.4", "0.4", "0.3.0.dev1"])
def test_a_kvpress_that_is_absent_or_old_is_refused_before_a_model_is_loaded(monkeypatch, found):
    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(installed, "version", version)
    monkeypatch.delitem(sys.modules, "baselines.kvpress.scorers", raising=False)
    for find in (installed.kvpress_version, lambda: job("method=kvpress/keydiff")):
        with refused("method", names="kvpress"):
            find()


@pytest.mark.parametrize("version", ["0.5.5", "0.5.6.dev0", "0.6", "1.0.0"])
def test_a_new_kvpress_is_accepted(monkeypatch, version):
    monkeypatch.setattr(installed, "version", lambda name: version)
    assert installed.kvpress_version() == version


IMPORT = """
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions
from compresskv.engine import attention
attention.register("compresskv_before", attention.SDPA())
functions["sdpa"] = own = lambda *args, **kwargs: None
before = dict(functions)
from baselines.kvpress.installed import kvpress
assert kvpress().KeyDiffPress
assert dict(functions) == before, "attention functions are replaced"
assert functions["sdpa"] is own
del functions["sdpa"]
assert functions["sdpa"] is not own
"""


def test_importing_kvpress_leaves_attention_as_it_was():
    kvpress_or_skip()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
