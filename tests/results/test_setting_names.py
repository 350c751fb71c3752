"""Different settings have different names, also across tasks."""

import pytest

from compresskv.methods import named_method
from evals.results.finish import finish
from evals.results.means import USUAL, average, sampled
from evals.results.names import names, outside_method
from evals.results.schema import experiments_of
from evals.results.store import SampleStore
from evals.tables.compare import Question, verdicts
from tests.support.trees import about, folder, line, setting


def cake(folder, gamma, task="needle", **fields):
    method = named_method("cake")
    parts = {
        "scorer": {"_target_": method.scorer.target, "gamma": gamma},
        "allocator": {"_target_": method.allocator.target},
    }
    return setting(folder, method="cake", task=task, node={"name": "cake", **parts}, **fields)


@pytest.mark.parametrize("usual", [200.0, 200])
def test_settings_of_different_tasks_do_not_share_a_name(tmp_path, usual):
    """A default is not part of a name, in whatever form it was written."""
    one, other = cake(tmp_path, usual, "a"), cake(tmp_path, 10.0, "b", digest="00000001")
    assert [name.variant for name in names([one, other])] == ["", "gamma=10"]


def test_a_setting_has_one_name_in_all_its_tasks(tmp_path):
    digests = iter(f"{n:08d}" for n in range(9))
    made = [cake(tmp_path, gamma, task, digest=next(digests)) for task in ("a", "b") for gamma in (200.0, 10.0)]
    assert [name.variant for name in names(made)] == ["", "gamma=10"] * 2
    assert [name.variant for name in names(made[:3])] == ["", "gamma=10", ""]


def test_a_setting_belongs_to_every_experiment_that_ran_it():
    configs = [{"experiment": "b"}, {"experiment": ["a", "b"]}, {}]
    assert [experiments_of(config) for config in configs] == [["b"], ["a", "b"], []]


def test_an_experiment_that_finds_a_setting_finished_is_added_to_it(tmp_path):
    for name in ("b", "", "a", "b"):
        store = SampleStore(folder(tmp_path, "snapkv", 64, "abcd1234"))
        if "1" not in store.lines:
            store.append(line("1"))
        named = {"of_config": {"experiment": name}} if name else {}
        record = finish(store, ["1"], about("snapkv", 64, **named), tmp_path / "runs")
        store.close()
    assert record.file_config["experiment"] == ["a", "b"]


def test_defaults_of_evaluations_are_no_part_of_a_name(tmp_path):
    defaults = {"a": {"one": {"lengths": [500]}}, "b": {"two": {"samples": 1}}}
    configs = {task: {"model": {"name": "tiny", "evals": evals}} for task, evals in defaults.items()}
    made = [setting(tmp_path, task=task, of_config=config) for task, config in configs.items()]
    assert len(set(names(made))) == 1


def test_a_full_cache_is_not_named_by_what_it_ignores(tmp_path):
    """Two fidelities make two settings; the budget and the window of the command lines that ran them do not."""
    first = {"budget": 64, "fidelity": True, "observation": {"window": 8}}
    second = {"budget": 128, "fidelity": {"tokens": 96}, "observation": {"window": 16}}
    made = [
        setting(tmp_path, method="full", digest=f"{place:08d}", of_config=config)
        for place, config in enumerate([first, second])
    ]
    assert [str(name) for name in names(made)] == ["FullKV fidelity=True", "FullKV tokens=96"]
    same = setting(tmp_path, method="full", task="other", of_config=first | {"budget": 256})
    assert names([made[0], same])[1].variant == ""


def test_a_value_outside_the_method_marks_all_settings_that_differ_in_it(tmp_path):
    """Each method has one setting, but their dtypes differ: the names say so, and nothing is compared."""
    made = [
        setting(tmp_path, method=name, dtype=dtype) for name, dtype in (("snapkv", "float32"), ("cake", "bfloat16"))
    ]
    assert [str(name) for name in names(made)] == ["SnapKV 64 dtype=float32", "CAKE 64 dtype=bfloat16"]
    assert [str(name) for name in names(made[:1], outside=outside_method(made))] == ["SnapKV 64 dtype=float32"]
    (table,) = sampled(made, USUAL, average)
    assert {row.name.variant for row in table.rows} == {"dtype=bfloat16", "dtype=float32"}
    assert verdicts(Question(subject="SnapKV"), table) == []


def test_settings_of_equal_conditions_are_compared_however_many_their_method_has(tmp_path):
    fidelity = {"of_config": {"fidelity": True}, "digest": "00000001"}
    made = [setting(tmp_path, method=name, **fidelity) for name in ("snapkv", "compresskv", "cake")]
    made += [setting(tmp_path, method=name, of_config={"fidelity": False}) for name in ("snapkv", "compresskv")]
    (table,) = sampled(made, USUAL, average)
    pairs = {(verdict.first, verdict.second) for verdict in verdicts(Question(), table)}
    assert pairs == {
        ("CompressKV", "SnapKV"),
        ("CompressKV fidelity=True", "SnapKV fidelity=True"),
        ("CompressKV fidelity=True", "CAKE fidelity=True"),
    }


def test_a_schedule_is_no_part_of_a_name_unless_schedules_differ(tmp_path):
    def evicting(method, when, interval, **fields):
        schedule = {"eviction": {"when": when, "interval": interval, "protect": "none"}}
        return setting(tmp_path, method=method, digest=f"{interval:08d}", of_config=schedule, when=when, **fields)

    one = [
        evicting("snapkv", "prompt+decode", 64),
        evicting("cake", "prompt+decode", 64),
        evicting("full", "prompt", 1),
    ]
    assert [name.variant for name in names(one)] == ["", "", ""]
    more = [*one, evicting("cake", "prompt+decode", 16)]
    assert [name.variant for name in names(more)] == ["interval=64", "interval=64", "", "interval=16"]
