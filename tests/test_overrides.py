"""Whatever is written for a group of conf/, Hydra's own included, is composed or refused in one sentence."""

import pytest

from compresskv.errors import UserError
from evals.compose import composed, expansion
from tests.support.command import Done, run
from tests.support.refusals import assert_refused, refused

GROUPS = (
    *("model", "method", "method/allocator", "eval", "protocol", "logger", "paths", "experiment"),
    *("hydra/launcher", "hydra/sweeper", "hydra/help"),
)

NEVER = (
    *("5", "1.5", "nan", "null", "true", "''", "[1]", "[null]", "{a: 1}", "a,b", "../x", "'\n'", "x" * 5000),
    *("1" * 5000, "[", "${x}", "${oc.env:NOWHERE}", "${oc.create:x}", "glob(*)", "range(3)", "\x00", "\udcff"),
)
"""What is no option of any group."""

KEYS = ("+{}=5", "++{}=x", "++{}=5", "~{}=5", "~{}=x", "{}@x=5", "{}@=5", "+{}@x.y=nope", "{}@_global_=x")

ELSEWHERE = (
    *("budget=${x}", "budget=${budget}", "budget=${oc.env:NOWHERE}", "budget=${name_of:}", "budget=${if_null:1}"),
    *(
        "=",
        "",
        "=5",
        "budget",
        "budget=[",
        "nope=1",
        "~nope",
        "~budget",
        "~eval",
        "~model",
        "~model.dtype=x",
        "+budget=1",
    ),
    *("hydra.mode=x", "hydra.searchpath=5", "hydra.run=5", "hydra=5", "model.dtype.x=1", "eval.lengths.0=1"),
    *("hydra.launcher=5", "hydra.sweeper=null", "hydra.launcher._target_=x", "hydra.job=5"),
)


def assert_a_sentence(error: UserError | None) -> None:
    """Assert that an error names a field and a fix, in one short sentence."""
    assert error
    assert error.field, str(error)
    assert error.fix, str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 1000


def assert_ended_by_a_refusal(done: Done) -> None:
    assert done.returncode != 0
    assert done.stderr == f"error: {done.error}\n"
    assert_a_sentence(done.error)


@pytest.mark.parametrize("group", GROUPS)
def test_no_value_of_a_group_is_more_than_a_sentence(group):
    for value in NEVER if group in ("model", "hydra/launcher") else NEVER[:4]:
        with pytest.raises(UserError) as refused:
            composed(f"{group}={value}")
        assert_a_sentence(refused.value)


@pytest.mark.parametrize("key", KEYS)
def test_no_way_of_naming_a_group_is_more_than_a_sentence(key):
    for group in ("model", "method/allocator"):
        with pytest.raises(UserError) as refused:
            composed(key.format(group))
        assert_a_sentence(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        *(["model=5"], ["eval=null"], ["logger=true"], ["method/allocator=[1]"], ["model=" + "x" * 5000]),
        *(["budget=${x}"], ["budget=" + "1" * 5000], ["hydra/launcher=5"], ["hydra/sweeper=null"], ["~budget"]),
        *(["--config-name=nope"], ["--config-dir=/nowhere"], ["--config-path=nowhere"], ["--config-path=pkg://x"]),
        *(["--nope"], ["--config-name"], ["model.dtype.x=1"], ["eval.lengths=${eval}"]),
    ],
    ids=lambda overrides: " ".join(overrides)[:30],
)
def test_the_command_line_ends_in_one_sentence(overrides):
    assert_ended_by_a_refusal(run("-m", *overrides))
    if overrides[0] not in ELSEWHERE:
        assert_ended_by_a_refusal(run(*overrides))


@pytest.mark.parametrize("override", ELSEWHERE)
def test_no_override_is_more_than_a_sentence(override):
    # The last is refused where all the rest is taken.
    assert_ended_by_a_refusal(run("method=full", override, "eval.needles=99"))


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(jobs):
        raise RuntimeError("a defect")

    monkeypatch.setattr("evals.running.sweep.run", broken)
    done = run("method=full")
    assert done.returncode == 1
    assert "RuntimeError: a defect" in done.stderr
    assert "Traceback" in done.stderr


def test_a_setting_of_one_method_is_swept_beside_others():
    jobs = expansion(["method=snapkv,cake", "budget=64,128", "for.cake.scorer.gamma=100,200"])
    gammas = [[o for o in job if "gamma" in o] for job in jobs]
    assert [job[0] for job in jobs] == ["method=snapkv"] * 2 + ["method=cake"] * 4
    assert gammas == [[], []] + [["method.scorer.gamma=100"], ["method.scorer.gamma=200"]] * 2
    assert expansion(["method=snapkv,cake", "for.cake.scorer.gamma=100"])[1] == [
        "method=cake",
        "method.scorer.gamma=100",
    ]
    with refused("for.cake"):
        expansion(["method=snapkv", "for.cake.scorer.gamma=100,200"])
    with refused("for.cake.scorer.gamma"):
        expansion(["method=cake", "+for.cake.scorer.gamma=100,200"])


def test_one_value_of_one_method_is_left_to_the_sweeper():
    done = run("-m", "method=snapkv,cake", "budget=4", "for.cake.scorer.gamma=100")
    assert_refused(done, "budget")
    assert_refused(run("method=cake", "for.cake.scorer.gamma=100"), "for.cake.scorer.gamma")
