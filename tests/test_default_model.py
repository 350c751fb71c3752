"""On real weights and real text: the paths agree, and the method does what it claims."""

from functools import partial

import pytest

from compresskv import calibration
from compresskv.context import Context
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.in_layer import generate_in_layer
from compresskv.engine.setting import FULL, Setting
from compresskv.methods import build
from evals.niah.evaluation import NiahTask
from tests.support.jobs import job

METHODS = ["streaming_llm", "snapkv", "pyramidkv", "cake", "headkv", "adakv", "compresskv"]


def setting(model, method: str, budget: int) -> Setting:
    made = job(f"method={method}", f"budget={budget}")
    held_out = calibration.find("smollm2-135m", "held_out")
    context = Context(model.name, model.layers, model.q_heads, model.kv_heads, calibration=held_out)
    return Setting(build(made.method, context), budget)


def prompts(model, length: int, depths: int):
    made = job(f"eval.lengths=[{length}]", f"eval.depths={depths}")
    task = NiahTask(made.eval, model, made.protocol)
    return [task.sample(id).ids for id in task.sample_ids]


def assert_paths_agree(model, texts, new_tokens: int) -> None:
    settings = [FULL, *map(partial(setting, model, budget=96), METHODS)]
    stopping = Stopping(new_tokens)
    with attached(model.model):
        for ids in texts:
            shared = generate(model.model, ids, settings, stopping)
            assert [generate(model.model, ids, [s], stopping)[0] for s in settings] == shared
            assert [generate_in_layer(model.model, ids, s, stopping) for s in settings] == shared


@pytest.mark.slow
@pytest.mark.parametrize(("length", "count", "new_tokens"), [(300, 1, 8), (1000, 20, 16)])
def test_shared_equals_separate_and_in_layer(default_model, length, count, new_tokens):
    assert_paths_agree(default_model, prompts(default_model, length, count), new_tokens)


@pytest.mark.slow
def test_compresskv_keeps_needles_that_streaming_llm_loses(default_model):
    made = job("eval.lengths=[1000,2000]", "eval.depths=4")
    task = NiahTask(made.eval, default_model, made.protocol)
    settings = [setting(default_model, method, 128) for method in ("compresskv", "snapkv", "streaming_llm")]
    scores = [0.0, 0.0, 0.0]
    with attached(default_model.model):
        for id in task.sample_ids:
            sample = task.sample(id)
            for number, found in enumerate(generate(default_model.model, sample.ids, settings, sample.stopping)):
                text = default_model.tokenizer.decode(found.tokens, skip_special_tokens=True)
                scores[number] += sample.score(text)["score"] / len(task.sample_ids)
    compresskv, snapkv, streaming = scores
    assert compresskv > streaming + 20
    assert compresskv > snapkv - 10
