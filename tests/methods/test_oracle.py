"""The oracle: what transformers' own attention weights say of the answer, and where its scores may not go."""

import pytest
import torch

from baselines.oracle import OracleScorer
from baselines.uniform import UniformAllocator
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.contexts import ContextStore
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.prefixes import PrefixStore
from compresskv.engine.setting import FULL, Setting
from compresskv.eviction import EvictionMethod, PromptShape
from compresskv.methods import build, named_method
from compresskv.schedule import EvictionSchedule
from evals.conformance.checks import all_checks
from evals.conformance.subject import Subject
from tests.methods.construction import context
from tests.support import tiny
from tests.support.jobs import job
from tests.support.methods_in_use import SNAPKV, evicting_layers
from tests.support.naive import attention_of
from tests.support.refusals import refused

WINDOW, BUDGET = 4, 20
ORACLE = EvictionMethod(OracleScorer(WINDOW), UniformAllocator())
SETTING = Setting(ORACLE, BUDGET)
NEW = Stopping(9)


def expected(model, ids, answer, length):
    """Kept positions by transformers' eager attention: its weights on the compressed tokens, made to sum to 1."""
    fed = torch.cat([ids, torch.tensor(answer[:-1], dtype=torch.int64)])
    weights = attention_of(model, fed)
    first = min(length, len(fed) - 1)  # without a later token, the last one of the prompt
    kept = []
    for layer in evicting_layers(model):
        rows = weights[layer][:, first:, :length]
        scores = (rows / rows.sum(-1, keepdim=True)).unflatten(0, (2, -1)).mean((1, 2))
        best = scores[:, : length - WINDOW].topk(BUDGET - WINDOW).indices.sort().values.tolist()
        kept.append([head + list(range(length - WINDOW, length)) for head in best])
    return kept


def positions(generation):
    return [[head.tolist() for head in layer] for layer in generation.positions]


@pytest.mark.parametrize(("family", "length"), [("llama", 90), ("qwen3", 70), ("qwen2-hybrid", 90)])
def test_it_keeps_what_the_answer_attends_to(family, length):
    model, ids = tiny.model(family), tiny.prompt(90)
    asked = None if length == 90 else length
    with attached(model):
        (full,) = generate(model, ids, [FULL], NEW, context=asked)
        (oracle,) = generate(model, ids, [SETTING], NEW, context=asked)
        assert positions(oracle) == expected(model, ids, full.tokens, length)
        assert generate(model, ids, [SETTING], NEW, chunk=37, context=asked) == [oracle]


def test_an_answer_of_one_token_comes_from_the_last_prompt_token():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with attached(model):
        full, oracle = generate(model, ids, [FULL, SETTING], Stopping(1))
    assert oracle.tokens == full.tokens
    assert positions(oracle) == expected(model, ids, full.tokens, 90)


@pytest.mark.parametrize("asked", [None, 70])
def test_other_settings_and_fidelity_are_the_same_beside_it(asked):
    model, ids = tiny.model("llama"), tiny.prompt(90)
    others, reference = [Setting(SNAPKV, 20), FULL, Setting(SNAPKV, 40)], [3, 4, 5]
    with attached(model):
        alone = generate(model, ids, others, NEW, reference=reference, context=asked)
        beside = generate(model, ids, [*others, SETTING], NEW, reference=reference, context=asked)
        without_full = generate(model, ids, [SETTING], NEW, reference=reference, context=asked)
        prefixes = PrefixStore(1 << 30)
        for _ in range(2):
            options = {"chunk": 16, "reference": reference, "prefixes": prefixes, "context": asked}
            chunked = generate(model, ids, [*others, SETTING], NEW, **options)
            assert [each.tokens for each in chunked] == [each.tokens for each in beside]
    for one, other in zip(beside, alone, strict=False):  # a question is read by all rows together, which rounds
        assert (one.tokens, positions(one)) == (other.tokens, positions(other))
        assert one.fidelity.kl == pytest.approx(other.fidelity.kl, rel=1e-4, abs=1e-5)
    assert beside[1].together == (1,)
    assert beside[3].fidelity.kl == pytest.approx(without_full[0].fidelity.kl, rel=1e-4)
    assert beside[3].tokens == without_full[0].tokens


def test_questions_about_one_context_have_an_oracle_each():
    model, text = tiny.model("llama"), tiny.prompt(70)
    prompts = [torch.cat([text, tiny.prompt(length, seed=length)]) for length in (5, 13, 8)]
    settings, store = [SETTING, Setting(SNAPKV, 20), FULL], ContextStore()
    with attached(model):
        for ids in prompts:
            alone = generate(model, ids, settings, NEW, context=70)
            shared = generate(model, ids, settings, NEW, context=70, contexts=store)
            assert shared == alone
            assert positions(shared[0]) == positions(alone[0])
    assert store.reused == 2


def test_it_takes_any_allocator_that_needs_scores_alone():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    where = context(PromptShape(4, 2, 90, 8), group=3)
    names = ("uniform", "pyramidkv", "adakv", "headkv", "layer_error")
    with attached(model):
        for name in names:
            config = job("method=oracle", f"method/allocator={name}").method
            (made,) = generate(model, ids, [Setting(build(config, where), 40)], NEW)
            assert made.realised_budget == 40
    assert named_method("oracle").name == "oracle"


def test_it_is_refused_where_the_answer_is_not_there():
    model, ids = tiny.model("llama"), tiny.prompt(90)
    with refused("method"), compressed(model, ORACLE, BUDGET):
        pass
    with refused("eviction.when"), attached(model):
        generate(model, ids, [SETTING], NEW, schedule=EvictionSchedule("prompt+decode", 4))
    with refused("method", value="oracle"):
        job("method=oracle", "eval=efficiency")
    with refused("method"):
        all_checks(Subject(lambda context: ORACLE, BUDGET))
