"""Budgets as numbers of tokens and as shares of what is compressed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compresskv.budget import Share, budget_from, largest_first, smallest_first, written
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.setting import Setting
from tests.support import tiny
from tests.support.methods_in_use import RAGGED, SNAPKV, STREAMING, compresskv
from tests.support.refusals import refused


@given(st.integers(1, 10_000), st.integers(1, 100_000), st.integers(1, 300))
def test_a_share_is_rounded_down_and_leaves_room_for_the_window(hundredths, length, window):
    share = budget_from(f"{hundredths // 100}.{hundredths % 100:02d}%")
    assert share.tokens(length, window) == max(math.floor(length * hundredths / 10_000 + 1e-9), window + 1)


@pytest.mark.parametrize(("text", "same"), [("25%", "25.0%"), ("12.5%", " 12.50 %"), ("100%", "100.000%")])
def test_a_share_has_one_name(text, same):
    assert budget_from(same) == budget_from(text)
    assert str(budget_from(same)) == written(budget_from(same)) == text


@pytest.mark.parametrize(
    "value", ["0%", "0.00%", "100.1%", "nan%", "NaN", "-5%", "25", "%", "1e1%", 0, -1, 2.5, True, None, math.nan, 10**9]
)
def test_other_budgets_are_refused(value):
    with refused("budget", value=value):
        budget_from(value)


def test_budgets_have_an_order():
    budgets = [budget_from(each) for each in (256, 64, "50%", "12.5%")]
    assert sorted([*budgets, None], key=largest_first) == [None, *budgets]
    assert sorted([*budgets, None], key=smallest_first) == [None, 64, 256, budgets[3], budgets[2]]


@pytest.mark.parametrize(("method", "length"), [(SNAPKV, 60), (STREAMING, 90), (compresskv(4), 90)])
def test_a_share_keeps_what_its_tokens_keep(method, length):
    model, ids = tiny.model("llama"), tiny.prompt(length)
    share = budget_from("33.3%")
    with attached(model):
        one, other = generate(model, ids, [Setting(method, share), Setting(method, int(0.333 * length))], Stopping(4))
        small = generate(model, ids, [Setting(method, budget_from("1%"))], Stopping(4))[0]
        whole = generate(model, ids, [Setting(method, budget_from("100%"))], Stopping(4))[0]
    assert (one.tokens, one.kept) == (other.tokens, other.kept)
    assert one.realised_budget == int(0.333 * length)
    assert small.realised_budget == method.window + 1
    assert whole.realised_budget == length


def test_the_public_api_takes_a_share():
    model, ids = tiny.model("llama"), tiny.prompt(80)
    with compressed(model, RAGGED, budget="50%") as cache:
        model(ids[None], past_key_values=cache)
        kept = [[len(head) for head in layer] for layer in cache.kept]
    with compressed(model, RAGGED, budget=40) as cache:
        model(ids[None], past_key_values=cache)
    assert kept == [[len(head) for head in layer] for layer in cache.kept]
    assert isinstance(Setting(RAGGED, Share(budget_from("50%").percent)).budget, Share)
