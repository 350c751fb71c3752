"""One function per press. Its parameters are the fields of the press, with kvpress's names."""

from typing import Annotated, Any, Literal

from baselines.kvpress.installed import kvpress_version
from baselines.kvpress.press import ObservedPressScorer, PressScorer
from compresskv.checking import Ge, Le
from compresskv.context import Context
from compresskv.methods import declares

Count = Annotated[int, Ge(0), Le(2**31 - 1)]
Size = Annotated[int, Ge(1), Le(2**31 - 1)]
Share = Annotated[float, Ge(0), Le(1e9)]

kvpress_version()  # fail before a model is loaded


def of(press: str, fields: dict[str, Any], **properties: Any) -> PressScorer:
    """Build the scorer of a press with these fields, sorted by name."""
    return PressScorer(press, tuple(sorted(fields.items())), kvpress_version(), **properties)


@declares(window=0, prompt="whole")
def cap(
    context: Context,
    *,
    tau: Annotated[float, Ge(-1e9), Le(1e9)],
    n_future_positions: Size,
    n_sink: Count,
    epsilon: Share,
) -> PressScorer:
    fields = {"tau": tau, "n_future_positions": n_future_positions, "n_sink": n_sink, "epsilon": epsilon}
    return of("CapPress", fields)


@declares(window=0)
def cur(
    context: Context,
    *,
    num_sinks: Count,
    leverage_type: Literal["key", "value", "kv_avg", "kv_product"],
    use_random_leverage: bool,
    use_local_approximation: bool,
    local_window_size: Size,
) -> PressScorer:
    fields = {
        "num_sinks": num_sinks,
        "leverage_type": leverage_type,
        "use_random_leverage": use_random_leverage,
        "use_local_approximation": use_local_approximation,
        "local_window_size": local_window_size,
    }
    return of("CURPress", fields, needs_hidden_states=False)


@declares(window=0, prompt="whole")
def expected_attention(
    context: Context,
    *,
    n_future_positions: Size,
    n_sink: Count,
    use_covariance: bool,
    use_vnorm: bool,
    epsilon: Share,
) -> PressScorer:
    fields = {
        "n_future_positions": n_future_positions,
        "n_sink": n_sink,
        "use_covariance": use_covariance,
        "use_vnorm": use_vnorm,
        "epsilon": epsilon,
    }
    return of("ExpectedAttentionPress", fields)


@declares(window=0)
def keydiff(context: Context) -> PressScorer:
    return of("KeyDiffPress", {}, needs_hidden_states=False)


@declares(window=0)
def knorm(context: Context) -> PressScorer:
    return of("KnormPress", {}, needs_hidden_states=False)


@declares(window=0)
def lagkv(context: Context, *, n_sink: Count, lag_size: Size, cross_scoring: bool) -> PressScorer:
    fields = {"n_sink": n_sink, "lag_size": lag_size, "cross_scoring": cross_scoring}
    return of("LagKVPress", fields, needs_hidden_states=False)


@declares(window=0, prompt="whole")
def leverage_score(context: Context, *, sketch_dimension: Size) -> PressScorer:
    return of("LeverageScorePress", {"sketch_dimension": sketch_dimension})


@declares(window=0, prompt="whole")
def non_causal_attn(context: Context, *, chunk_size: Size) -> PressScorer:
    return of("NonCausalAttnPress", {"chunk_size": chunk_size})


@declares(window=0)
def observed_attention(context: Context) -> ObservedPressScorer:
    return ObservedPressScorer("ObservedAttentionPress", (), kvpress_version(), needs_hidden_states=False)


@declares(window=0)
def random(context: Context, *, seed: Count | None) -> PressScorer:
    """Build the scorer. `seed`: the same numbers in every layer, as in kvpress.

    Null draws different numbers in each layer, which are the same in every run.
    """
    return of("RandomPress", {"seed": seed}, needs_hidden_states=False)


@declares(prompt="whole")
def snapkv(context: Context, *, window_size: Size, kernel_size: Size) -> PressScorer:
    """Build the scorer. The observation window is the window of the press: `window_size` tokens."""
    return of("SnapKVPress", {"window_size": window_size, "kernel_size": kernel_size}, window=window_size)


@declares(window=1, heads="alike", prompt="whole")
def tova(context: Context) -> PressScorer:
    return of("TOVAPress", {}, window=1, alike=True)
