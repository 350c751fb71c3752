"""What the installed transformers decides: the cache's argument, warnings, and versions that are too old."""

import logging
import re
import subprocess
import sys
import tomllib
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import PreTrainedModel

from compresskv import installed
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.masking import generate_masked
from compresskv.engine.setting import FULL, Setting
from compresskv.installed import cache_argument, generate_argument
from compresskv.probe import refuse_unserved
from tests.support import tiny
from tests.support.command import ROOT
from tests.support.methods_in_use import SNAPKV
from tests.support.refusals import assert_refused, refused


@contextmanager
def nothing_is_deprecated(caplog):
    """Nothing that transformers would call deprecated is used, by warnings or in its log."""
    log = logging.getLogger("transformers")
    propagate, log.propagate = log.propagate, True
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "transformers"):
            warnings.simplefilter("error", FutureWarning)
            warnings.simplefilter("error", DeprecationWarning)
            yield
    finally:
        log.propagate = propagate
    assert [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage()] == []


@pytest.mark.parametrize("family", ["llama", "qwen2-hybrid", "gemma3"])
def test_nothing_deprecated_is_used(family, caplog):
    model, ids, settings = tiny.model(family), tiny.prompt(60), [FULL, Setting(SNAPKV, 20)]
    with nothing_is_deprecated(caplog):
        refuse_unserved(model)
        with attached(model):
            shared = generate(model, ids, settings, Stopping(4), reference=[1, 2, 3])
            assert generate_in_layer(model, ids, settings[1], Stopping(4), 25).tokens == shared[1].tokens
            heads = ((0,),) * len(shared[0].kept)
            assert len(list(generate_masked(model, ids, [heads], Stopping(2)))) == 1
        inputs = {"attention_mask": torch.ones(1, 60, dtype=torch.long), "do_sample": False, "eos_token_id": None}
        with compressed(model, SNAPKV, 20) as cache:
            output = model.generate(ids[None], max_new_tokens=4, **inputs, **{generate_argument(): cache})
    assert output[0, 60:].tolist() == shared[1].tokens


def test_a_model_is_asked_for_its_name_of_the_cache():
    """Code that comes with a checkpoint may have another one than the installed transformers."""

    class Old(PreTrainedModel):
        def forward(self, input_ids, past_key_values=None): ...

    class New(PreTrainedModel):
        def forward(self, input_ids, cache=None): ...

    class Wrapped(PreTrainedModel):
        def forward(self, *args, **kwargs): ...

    names = [cache_argument(kind.__new__(kind)) for kind in (Old, New, Wrapped)]
    assert names == ["past_key_values", "cache", generate_argument()]


@pytest.mark.parametrize("version", ["4.57.6", "5.19.0", "5.19.9.dev0", "5.20.0", "5.24.0", "5.25.0.dev0", "6.0.0"])
def test_an_older_transformers_is_refused(monkeypatch, version):
    monkeypatch.setattr(installed, "version", lambda name: version)
    with refused("transformers", value=version) if version < "5.20" else nullcontext():
        installed.refuse_older()


@pytest.mark.parametrize(
    "how",
    [
        "runpy.run_path('run.py', run_name='__main__')",
        "runpy.run_module('evals.conformance', run_name='__main__', alter_sys=True)",
    ],
)
def test_it_is_refused_in_one_sentence_before_anything_is_loaded(how, tmp_path):
    """With a transformers of which nothing but its version is there."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise ImportError('nothing is here')")
    (tmp_path / "transformers-5.19.0.dist-info").mkdir()
    (tmp_path / "transformers-5.19.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 5.19.0\n")
    start = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['method=snapkv']; "
    done = subprocess.run([sys.executable, "-c", start + how], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert_refused(done, "transformers")


def test_the_oldest_and_the_newest_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = [Requirement(line).specifier for line in project["dependencies"] if line.startswith("transformers")]
    makefile = (ROOT / "Makefile").read_text()
    oldest, newest = (
        Version(re.search(rf"^{name} := .*transformers-([0-9.]+)$", makefile, re.MULTILINE)[1])
        for name in ("OLDEST", "NEWEST")
    )
    assert Version(installed.OLDEST) == oldest
    assert oldest in allowed
    assert newest in allowed
    assert f"{oldest.major}.{oldest.minor - 1}.99" not in allowed
    assert f"{newest.major}.{newest.minor + 1}" not in allowed
