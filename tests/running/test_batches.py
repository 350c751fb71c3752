"""Which settings of a prompt are decoded together, in a first run and after a run that was cut short."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from compresskv.engine.decode import Stopping
from compresskv.engine.prefill import PrefillError
from compresskv.errors import UserError
from compresskv.schedule import EvictionSchedule
from evals.job import Sample
from evals.running import batches as running
from evals.running.batches import batches


class OneSample:
    """A task with one prompt, "x", of these token ids."""

    def __init__(self, *ids):
        self.ids = torch.tensor(ids)

    def sample(self, id):
        return Sample(id, self.ids, Stopping(4), score=dict)


def run(key, task, batch=None, chunk=None, when="prompt", budget=64, fidelity=None):
    lines = {"x": {"batch": batch}} if batch else {}
    job = SimpleNamespace(prefill_chunk=chunk, fidelity=fidelity, eviction=EvictionSchedule(when), budget=budget)
    appended = []
    store = SimpleNamespace(lines=lines, append=appended.append)
    of = {"key": key, "task": task, "job": job, "store": store, "exports": False, "appended": appended}
    return SimpleNamespace(**of, lacks=lambda id: id not in lines)


def keys(runs):
    return [[r.key for r in batch] for _, batch in batches("x", runs)]


def test_settings_of_one_prompt_are_one_batch():
    task = OneSample(1, 2, 3)
    assert keys([run("a", task), run("b", task)]) == [["a", "b"]]


def test_protocols_share_a_prefill_only_where_their_tokens_are_equal():
    corrected, released, other = OneSample(1, 2, 3), OneSample(1, 2, 3), OneSample(1, 2)
    assert keys([run("a", corrected), run("b", released), run("c", other)]) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("other", [{"chunk": 2}, {"fidelity": "answer"}, {"fidelity": 32}])
def test_other_chunks_and_another_fidelity_share_no_prefill(other):
    task = OneSample(1, 2, 3)
    assert keys([run("a", task), run("b", task, **other)]) == [["a"], ["b"]]


def test_eviction_after_the_prompt_and_before_the_question_are_apart():
    task = OneSample(1, 2, 3)
    assert keys([run("a", task), run("b", task, when="context"), run("c", task)]) == [["a", "c"], ["b"]]


def test_the_full_cache_joins_settings_that_evict_while_decoding():
    task = OneSample(1, 2, 3)
    full, other = run("full", task, budget=None), run("context", task, when="context+decode")
    decoding = [run("a", task, when="prompt+decode"), run("b", task, when="prompt+decode")]
    assert keys([full, other, *decoding]) == [["context"], ["a", "b", "full"]]
    assert keys([full, other]) == [["context"], ["full"]]


def test_a_batch_that_was_cut_short_is_decoded_whole():
    task = OneSample(1, 2, 3)
    cut = [run("a", task, ["a", "b", "c"]), run("b", task), run("c", task)]
    assert keys(cut) == [["a", "b", "c"]]


def test_settings_that_come_later_do_not_disturb_finished_batches():
    task = OneSample(1, 2, 3)
    later = [run("a", task, ["a", "b"]), run("b", task, ["a", "b"]), run("c", task)]
    assert keys(later) == [["c"]]
    assert keys(later[:2]) == []


def test_the_full_cache_has_its_control_if_its_line_alone_is_missing():
    task = OneSample(1, 2, 3)
    later = [run("full", task, budget=None), run("a", task, ["a", "b"]), run("b", task, ["a", "b"])]
    assert keys(later) == [["full"]]
    for one in later:
        one.job.fidelity = "answer"
    assert keys(later) == [["a", "full"]]
    assert keys(later[:1]) == [["full"]]


def test_a_batch_that_is_not_asked_for_again_cannot_be_repeated():
    task = OneSample(1, 2, 3)
    assert keys([run("a", task, ["a", "b", "gone"]), run("b", task)]) == [["b"]]


def failing_sample(monkeypatch, generate):
    """The runs "a" and "b" after a sample for which `generate` stands in for the engine."""
    monkeypatch.setattr(running, "generate", generate)
    task = OneSample(1, 2, 3)
    batch = [run("a", task), run("b", task)]
    for one in batch:
        one.setting, one.error, one.job.memory_bytes = one.key, None, None
    running.run_batch(SimpleNamespace(model=None), task.sample("x"), batch)
    return batch


def test_what_all_settings_share_fails_once(monkeypatch):
    calls, failure = [], PrefillError("prompt", "use shorter ones")

    def generate(model, ids, settings, stopping, **rest):
        calls.append(settings)
        raise failure

    for one in failing_sample(monkeypatch, generate):
        assert one.appended == [{"id": "x", "error": str(failure)}]
        assert one.error is None
    assert calls == [["a", "b"]]


def test_the_full_cache_has_its_control_if_another_setting_fails(monkeypatch):
    calls = []

    def generate(model, ids, settings, stopping, **rest):
        calls.append(settings)
        if "b" in settings:
            raise RuntimeError
        return [SimpleNamespace(together=(place,)) for place, _ in enumerate(settings)]

    monkeypatch.setattr(running, "generate", generate)
    monkeypatch.setattr(running, "sample_line", lambda *given: {"id": "x"})
    task = OneSample(1, 2, 3)
    batch = [run("a", task), run("b", task), run("full", task, budget=None)]
    for one in batch:
        one.setting, one.error, one.job.memory_bytes, one.job.protocol = one.key, None, None, None
        one.store.append = lambda line, lines=one.store.lines: lines.update(x=line)
    running.run_batch(SimpleNamespace(model=None), task.sample("x"), batch)
    assert calls == [["a", "b", "full"], ["a"], ["b"], ["a", "full"]]
    assert [one.error is None for one in batch] == [True, False, True]


def test_a_setting_with_its_result_does_not_fail_beside_another(monkeypatch):
    def generate(model, ids, settings, stopping, **rest):
        raise UserError("method", "choose another")

    monkeypatch.setattr(running, "generate", generate)
    task = OneSample(1, 2, 3)
    done, full = run("a", task, ["a"]), run("full", task, budget=None)
    for one in (done, full):
        one.setting, one.error, one.job.memory_bytes = one.key, None, None
    running.run_batch(SimpleNamespace(model=None), task.sample("x"), [done, full])
    assert done.error is None
    assert isinstance(full.error, UserError)


def test_nothing_of_a_failed_batch_is_held_while_its_settings_run_alone(monkeypatch):
    held = []

    def generate(model, ids, settings, stopping, **rest):
        assert all(cache() is None for cache in held)
        cache = torch.zeros(3)
        held.append(weakref.ref(cache))
        try:
            raise RuntimeError(settings)
        except RuntimeError as error:
            raise ValueError(str(settings)) from error

    batch = failing_sample(monkeypatch, generate)
    assert [str(one.error) for one in batch] == ["['a']", "['b']"]
    assert len(held) == 3
