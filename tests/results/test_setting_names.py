"""Settings that differ have different names, whatever tasks they ran on."""

from compresskv.methods import named_method
from evals.results.finish import _experiments
from evals.results.names import names
from tests.support.trees import setting


def cake(folder, gamma, task="needle", **fields):
    method = named_method("cake")
    parts = {
        "scorer": {"_target_": method.scorer.target, "gamma": gamma},
        "allocator": {"_target_": method.allocator.target},
    }
    return setting(folder, method="cake", task=task, node={"name": "cake", **parts}, **fields)


def test_settings_of_different_tasks_do_not_share_a_name(tmp_path):
    one, other = cake(tmp_path, 200.0, "a"), cake(tmp_path, 10.0, "b", digest="00000001")
    assert [name.variant for name in names([one, other])] == ["", "gamma=10"]


def test_a_setting_has_one_name_in_all_its_tasks(tmp_path):
    digests = iter(f"{n:08d}" for n in range(9))
    made = [cake(tmp_path, gamma, task, digest=next(digests)) for task in ("a", "b") for gamma in (200.0, 10.0)]
    assert [name.variant for name in names(made)] == ["", "gamma=10"] * 2
    assert [name.variant for name in names(made[:3])] == ["", "gamma=10", ""]


def test_a_default_is_no_part_of_a_name_however_it_was_written(tmp_path):
    one, other = cake(tmp_path, 200), cake(tmp_path, 10, digest="00000001")
    assert [name.variant for name in names([one, other])] == ["", "gamma=10"]


def test_a_setting_belongs_to_every_experiment_that_ran_it():
    summaries = [{"config": {"experiment": "b"}}, {"config": {"experiment": ["a", "b"]}}, {"config": {}}, {}]
    assert _experiments(*summaries) == ["a", "b"]
