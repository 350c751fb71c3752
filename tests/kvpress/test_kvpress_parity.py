"""Kept sets and answers compared with kvpress's own pipeline, in the environment that `make parity-kvpress` makes."""

import pytest

from bench.kvpress import ENVIRONMENT
from bench.parity import parity
from bench.settings import default_model
from tests.support.kvpress_here import kvpress_or_skip

kvpress_or_skip()

NAMES = ["expected_attention", "keydiff", "knorm", "snapkv", "tova", "cur", "adakv", "streaming_llm"]


@pytest.mark.slow
def test_presses_keep_what_kvpress_keeps():
    if not (ENVIRONMENT / ".ready").exists():
        pytest.skip("kvpress has no environment: run `make .venv-kvpress/.ready`")
    for case, agreement in parity(default_model("model.dtype=float32"), NAMES, [1000]).items():
        assert agreement.ours == agreement.theirs, case
        assert agreement.same >= 0.98 * agreement.sets, (case, str(agreement))
        assert agreement.both >= 0.999 * agreement.tokens, (case, str(agreement))
        assert agreement.equal == agreement.answers, (case, str(agreement))
