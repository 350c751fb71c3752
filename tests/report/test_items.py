"""Artefacts of experiments with special settings: which results they choose, show and compare."""

import json

import pytest

from compresskv.calibration import FOLDER
from compresskv.methods import method_config
from evals.experiments import ITEMS
from evals.reference.export import export_setting
from evals.report import selection
from evals.report.artefacts import page_of
from evals.report.latex import appendix, latex
from evals.report.markdown import markdown
from evals.report.selection import settings_of
from evals.results.record import records
from tests.support.refusals import refused
from tests.support.trees import cells, line, longbench_task, nodes, scored, setting

OBSERVATION = {"window": 8, "kernel": 5, "pooling": "average"}


def rows(page, place=0):
    return {row.label: row for row in page.tables[place].rows}


NOT_OF_NEEDLES = ("decoding", "kvpress_board")  # tests/longgen and tests/ruler run these
SCORED = sorted(
    name
    for name, item in ITEMS.items()
    if item.source == "" and item.view in ("", "layers", "abilities") and name not in NOT_OF_NEEDLES
)


QUICK = ("fig9_budgets", "table3_components")


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCORED]
)
def test_every_item_renders_complete_and_partial_results_of_two_models(experiment, tmp_path):
    with refused("experiment", value=experiment):
        page_of(experiment, tmp_path)
    node = settings_of(experiment, None)[-1]
    method = method_config(node["method"]).name
    of_eval = {name: node["eval"][name] for name in ("haystack", "needles") if name in node["eval"]}
    of_config = {name: node[name] for name in ("observation", "calibration")}
    for model, counts in {"whole": (4, 4), "part": (4, 2)}.items():
        for budget, count in zip((64, 128), counts, strict=True):
            lines = cells([50.0 + n for n in range(count)])
            place = {"node": node["method"], "of_config": of_config, "of_eval": of_eval, "digest": f"{budget:08}"}
            setting(tmp_path, lines, method, budget=budget, model=model, **place, experiment=experiment)
    page = page_of(experiment, tmp_path)
    assert [table.model for table in page.tables] == ["part", "whole"]
    part, whole = page.tables
    read = page.frames["table"]()
    assert {row.budget: row.cells["average"].partial for row in part.rows} == {64: False, 128: True}
    assert set(read[read["partial"]]["model"]) == {"part"}
    assert markdown(page).count("†2 of 4") == appendix(page).count(r"\textdagger{}2 of 4") > 0
    assert not any(cell.partial for row in whole.rows for cell in row.cells.values())
    average = read[(read["model"] == "whole") & (read["column"] == "average")]
    assert set(average["n"]) == {4}
    assert latex(page).count(r"\toprule") >= 2


def test_settings_are_chosen_by_what_an_experiment_sweeps(tmp_path):
    for source, digest in {"held_out": "aaaa1111", "published": "bbbb2222"}.items():
        place = {"digest": digest, "of_config": {"calibration": source, "observation": OBSERVATION}}
        longbench_task(tmp_path, "qasper", "compresskv", experiment="calibration_leakage", **place)
    assert list(rows(page_of("calibration_leakage", tmp_path))) == ["CompressKV, calibration held_out"]
    # What `auto` takes under the corrected protocol is held out.
    auto, of_config = tmp_path / "auto", {"of_config": {"calibration": "auto"}}
    longbench_task(auto, "qasper", "compresskv", experiment="calibration_leakage", **of_config)
    assert list(rows(page_of("calibration_leakage", auto))) == ["CompressKV, calibration held_out"]


def test_windows_are_rows_that_are_compared_with_the_papers(tmp_path):
    for window, score in {8: 50.0, 16: 60.0, 12: 70.0}.items():
        config = {"observation": OBSERVATION | {"window": window}}
        place = {"digest": f"abcd{window:04}", "of_config": config, "experiment": "window_pooling"}
        for method in ("snapkv", "compresskv-uniform"):
            longbench_task(tmp_path, "qasper", method, [score] * 4, **place)
    page = page_of("window_pooling", tmp_path)
    assert set(rows(page)) == {
        f"{method}, window {window}, average pooling"
        for method in ("SnapKV", "SnapKV + semantic heads")
        for window in (8, 16)
    }
    compared = {(verdict.first, verdict.second) for verdict in page.verdicts}
    assert ("SnapKV, window 8, average pooling", "SnapKV, window 16, average pooling") in compared
    assert ("SnapKV, window 16, average pooling", "SnapKV + semantic heads, window 16, average pooling") in compared
    # Elsewhere, only the experiment's own observation is shown.
    elsewhere = {
        name: row.cells["average of 16"].mean for name, row in rows(page_of("table3_components", tmp_path)).items()
    }
    assert elsewhere == {"SnapKV": 50.0, "SnapKV + semantic heads": 50.0}


def test_calibrated_heads_are_found_as_the_number_they_are(tmp_path):
    """Runs with an explicit and with a default number of heads share a folder and the first run's configuration."""
    node = nodes("table3_components")["compresskv-uniform"]
    built = {"EvictionMethod": {"scorer": {"SemanticHeadScorer": {"heads": [[7], [3]]}}}}
    place = {"model": "smollm2-135m", "node": node, "method_in_full": built}
    longbench_task(tmp_path, "qasper", "compresskv-uniform", experiment="table3_components", **place)
    assert list(rows(page_of("table2_heads", tmp_path))) == ["top-1 heads"]
    set_to_one = {**node, "scorer": {**node["scorer"], "heads": 1}}
    other = tmp_path / "other"
    protocol = {"of_config": {"calibration": "auto", "protocol": {"name": "corrected"}}}
    longbench_task(
        other, "qasper", "compresskv-uniform", experiment="table2_heads", **{**place, **protocol, "node": set_to_one}
    )
    assert list(rows(page_of("table2_heads", other))) == ["top-1 heads"]


def test_runs_of_other_experiments_are_shown_only_where_the_experiment_asks_for_their_setting(tmp_path, monkeypatch):
    few = ("method=random,tova,h2o,rkv,snapkv", "eviction.protect=none")  # the whole sweep takes 7 s to compose
    monkeypatch.setattr(selection, "settings_of", lambda *of: settings_of(*of, *few))
    methods = {config["method"]["name"]: config["method"] for config in settings_of("decoding", None, *few)}

    def answered(method, digest, budget=64, interval=64, tokens=512, experiment="decoding", **of_eval):
        eviction = {"when": "prompt+decode", "interval": interval, "protect": "none"}
        of_config = {"eviction": eviction, "fidelity": {"tokens": tokens}, "calibration": "auto"}
        of_config |= {"experiment": experiment} if experiment else {}
        place = {"eval": "longgen", "task": "longgen", "of_eval": of_eval, "node": methods[method]}
        lines = [line(str(number), 50.0, kind="story") for number in range(4)]
        setting(tmp_path, lines, method, budget, f"{digest:08}", of_config=of_config, **place)

    answered("snapkv", 1)
    answered("snapkv", 2, interval=32)
    answered("h2o", 3, experiment="")
    before = page_of("decoding", tmp_path)
    assert [row.label.split()[0] for row in before.tables[0].rows] == ["H2O", "SnapKV", "SnapKV"]
    answered("snapkv", 4, interval=128, experiment="")
    answered("tova", 5, tokens=64, experiment="")
    answered("rkv", 6, budget=256, experiment="another")
    answered("random", 7, experiment=["another"], max_new_tokens=7)
    assert markdown(page_of("decoding", tmp_path)) == markdown(before)
    answered("rkv", 8, experiment=["another", "decoding"])
    assert "R-KV" in "".join(rows(page_of("decoding", tmp_path)))


def test_every_number_of_heads_that_was_asked_for_is_a_row(tmp_path):
    node = nodes("table2_heads")["compresskv-uniform"]
    of_config = {"calibration": "auto", "protocol": {"name": "corrected"}}
    for digest, heads in {"aaaa1111": 7, "bbbb2222": None, "cccc3333": 3, "dddd4444": 16}.items():
        of_scorer = {**node, "scorer": {**node["scorer"], "heads": heads}}
        place = {"model": "smollm2-135m", "node": of_scorer, "digest": digest, "of_config": of_config}
        longbench_task(tmp_path, "qasper", "compresskv-uniform", experiment="table2_heads", **place)
    longbench_task(tmp_path, "qasper", "compresskv", experiment="table3_components", model="smollm2-135m")
    page = page_of("table2_heads", tmp_path)
    counts = ["top-3 heads", "top-7 heads", "top-16 heads"]
    assert list(rows(page)) == ["number of heads unknown", *counts]  # where the summary does not say how many
    assert "smollm2-135m, protocol=corrected: by default, top-1 heads select." in page.notes
    # There, as many heads select as by default, which is what null stands for.
    assert list(rows(page_of("table3_components", tmp_path))) == ["SnapKV + semantic heads", "CompressKV"]


def test_uniform_layers_are_a_row_of_the_plugin(tmp_path):
    for layers in ("layer_error", "uniform"):
        node = nodes("v2_fig9_plugin")["adacompresskv"]
        node = {**node, "allocator": {**node["allocator"], "layers": layers}}
        scores = [50.0 + n + 20 * (layers == "uniform") for n in range(10)]
        place = {"node": node, "digest": f"{len(layers):08}", "experiment": "v2_fig9_plugin"}
        longbench_task(tmp_path, "qasper", "adacompresskv", scores, **place)
    longbench_task(tmp_path, "qasper", "adakv", [40.0 + n for n in range(10)], experiment="v2_fig9_plugin")
    page = page_of("v2_fig9_plugin", tmp_path)
    assert set(rows(page)) == {"AdaKV", "AdaCompressKV", "AdaCompressKV, uniform layers"}
    found = {(verdict.first, verdict.second): verdict.words for verdict in page.verdicts}
    assert found["AdaKV", "AdaCompressKV, uniform layers"] == "in favour of AdaCompressKV, uniform layers"
    assert len(found) == 3


def masked(results, ranking, count, scores, draw=None, model="tiny"):
    """A finished choice of masked heads, as eval=head_masking leaves it."""
    name = f"{ranking}-{count}" + ("" if draw is None else f"-draw{draw}")
    lines = cells(scores, ranking=ranking, masked=count)
    for of_sample in lines:
        of_sample["score_keywords"] = of_sample["score"] / 2
    place = {"eval": "head_masking", "task": name, "of_eval": {"masked": [0, 10, 20]}}
    setting(results, lines, "full", model=model, **place, experiment="fig7_masking")


def test_masking_has_a_row_for_every_ranking_and_a_column_for_every_number_of_heads(tmp_path):
    before = [90.0 + n for n in range(10)]
    masked(tmp_path, "none", 0, before)
    masked(tmp_path, "semantic", 3, [score - 60 for score in before])
    masked(tmp_path, "traditional", 3, [score - 4 for score in before])
    masked(tmp_path, "traditional", 5, [score - 30 for score in before])
    masked(tmp_path, "random", 3, before, draw=0)
    masked(tmp_path, "random", 3, [score - 2 for score in before], draw=1)
    page = page_of("fig7_masking", tmp_path)
    of_ranking = rows(page)
    assert list(of_ranking) == ["traditional heads", "semantic heads", "random heads"]
    drops = ["drop with the top 10 masked", "drop with the top 20 masked"]
    assert list(page.tables[0].columns) == ["K = 0", "K = 3", "K = 5", *drops]
    assert {row.cells["K = 0"].mean for row in of_ranking.values()} == {94.5}
    assert of_ranking["semantic heads"].cells["K = 3"].mean == 34.5
    random = of_ranking["random heads"].cells["K = 3"]
    assert (random.mean, random.n) == (93.5, 10)  # draws are averaged within a prompt
    # Keywords lose half as much here; the paper's model is not this one, nor named.
    drop = of_ranking["semantic heads"].cells["drop with the top 10 masked"]
    assert (drop.mean, drop.published, drop.difference) == (30.0, 24.55, None)
    assert "(paper 24.55, second-hand, not comparable: its model is not named)" in markdown(page)
    read = page.frames["table"]().set_index(["method", "column"])
    assert read.loc[("semantic heads", "drop with the top 10 masked"), "source"] == "second-hand"
    assert "scaled to the model's: 3 for 10, 5 for 20." in page.notes[0]
    assert "| Mistral-7B-Instruct-v0.3 | – | semantic heads | paper v1 text | 74 |" in markdown(page)
    assert "the mean of 2 draws" in page.notes[0]
    words = {(verdict.first, verdict.second, verdict.column): verdict.words for verdict in page.verdicts}
    assert words["traditional heads", "semantic heads", "K = 3"] == "masking semantic heads costs more"
    assert not any(column == "K = 0" for _, _, column in words)
    assert [len(draw().axes) > 0 for draw in page.figures.values()] == [True]
    for record in records(tmp_path):
        export_setting(record, tmp_path / "committed" / record.path.relative_to(tmp_path))
    assert markdown(page_of("fig7_masking", tmp_path / "committed")) == markdown(page)


def test_needles_never_stand_in_for_head_masking(tmp_path):
    scored(tmp_path, {"full": [10.0, 20.0]})
    with refused("experiment", value="fig7_masking"):
        page_of("fig7_masking", tmp_path)


def test_needles_are_shown_by_kind_and_haystack_and_compared_in_each(tmp_path):
    haystacks = settings_of("needles", None)
    for config in haystacks[:2]:
        haystack = config["eval"]["haystack"]
        digest = f"{len(haystack):08}"
        for method, score in {"full": 99.0, "snapkv": 40.0, "cake": 50.0, "compresskv": 70.0}.items():
            lines = []
            for number in range(12):
                id = f"L{1000 * (number // 2)}-D0-N{number % 2}"
                lines.append(line(id, score + number, length=1000 * (number // 2), depth=0.0))
            of_eval = {"haystack": haystack, "needles": 2, "needle": config["eval"]["needle"]}
            setting(tmp_path, lines, method, digest=digest, of_eval=of_eval, experiment="needles")
    page = page_of("needles", tmp_path)
    (grid,) = page.tables
    assert list(grid.columns) == ["activity", "place", "in PaulGrahamEssays", "in topics", "average"]
    snapkv = rows(page)["SnapKV"].cells
    assert [snapkv[column].n for column in grid.columns] == [12, 12, 12, 12, 24]
    assert not any(cell.partial for cell in snapkv.values())
    assert {verdict.column for verdict in page.verdicts} == set(grid.columns)
    verdict = next(v for v in page.verdicts if (v.second, v.column) == ("SnapKV", "in topics"))
    assert verdict.words == "in favour of CompressKV"
    assert "activity 1.00, place 1.00, in PaulGrahamEssays 1.00, in topics 1.00." in page.notes[-1]


def test_fidelity_has_a_table_of_its_own_where_runs_carry_it(tmp_path):
    for method, kl in {"snapkv": 0.2, "compresskv": 0.1}.items():
        lines = cells([50.0 + n for n in range(12)])
        for place, of_sample in enumerate(lines):
            of_sample |= {"kl": kl + place / 1000, "agreement": 1 - kl, "reference_nll": None if place else 3.0}
        setting(tmp_path, lines, method, experiment="beyond_retrieval")
    page = page_of("beyond_retrieval", tmp_path)
    assert [table.metric.field for table in page.tables] == ["score", "kl", "agreement", "reference_nll"]
    verdict = next(v for v in page.verdicts if v.metric == "kl")
    assert (verdict.words, verdict.mean) == ("in favour of CompressKV", 0.1)
    assert "**0.1055**" in markdown(page)  # lower is better
    read = page.frames["table"]()
    assert set(read["metric"]) == {"score", "kl", "agreement", "reference_nll"}
    assert read[(read["metric"] == "reference_nll") & (read["column"] == "average")]["n"].tolist() == [1, 1]


def test_longbench_is_grouped_by_kind_of_task_and_its_fidelity_is_partial(tmp_path):
    for task in ("qasper", "hotpotqa", "gov_report", "passage_count", "lcc"):
        lines = [line(str(n), answers=["a"], length=1, kl=0.5, agreement=None if n else 1.0) for n in range(3)]
        setting(tmp_path, lines, "snapkv", task=task, eval="longbench", experiment="beyond_retrieval")
    page = page_of("beyond_retrieval", tmp_path)
    score, kl, agreement = page.tables
    for grid, n in ((score, 15), (kl, 15), (agreement, 5)):
        assert list(grid.columns) == ["QA", "summaries", "code", "average of 16"]
        assert set(grid.rows[0].cells["QA"].strata) == {"qasper", "hotpotqa"}
        cell = grid.rows[0].cells["average of 16"]
        assert (cell.n, cell.of, cell.partial) == (n, 3750 - (15 - n), True)
    assert "A mean without an interval" in markdown(page)  # agreement has one sample of each task


def measurement(results, stamp, settings, seconds, rounds=0):
    """Write the file of a run of eval=efficiency, in which everything took `seconds`; older files have no rounds."""
    values = {"total_s": seconds, "first_token_s": seconds / 2, "decode_ms": 10 * seconds}
    values |= {"cache_bytes": 1e6 * seconds, "peak_bytes": None}
    by_round = {"by_round": {field: [value] * rounds for field, value in values.items()}} if rounds else {}
    made = [{**each, "length": length, **values, **by_round} for each in settings for length in (1000, 2000)]
    folder = results / "efficiency" / "tiny" / stamp
    folder.mkdir(parents=True)
    about = {"model": "tiny", "dtype": "float32", "backend": "sdpa", "new_tokens": 8, "rounds": rounds or 1}
    (folder / "efficiency.json").write_text(json.dumps({**about, "rows": made}))


def test_efficiency_is_of_the_last_whole_measurement(tmp_path):
    methods = {"full": None, **dict.fromkeys(("snapkv", "pyramidkv", "cake", "compresskv", "tova"), 256)}
    whole = [
        {"setting": f"{method} {budget}", "method": method, "budget": budget, "protocol": "corrected"}
        for method, budget in methods.items()
    ]
    measurement(tmp_path, "20260101-000000", whole, 2.0, 3)
    measurement(tmp_path, "20260102-000000", whole, 1.0, 3)
    measurement(tmp_path, "20260103-000000", [whole[0], whole[1] | {"budget": 64}], 9.0, 3)
    (tmp_path / "efficiency" / "tiny" / "20260104-000000").mkdir()
    (tmp_path / "efficiency" / "tiny" / "20260104-000000" / "efficiency.json").write_text("{")
    page = page_of("fig8_efficiency", tmp_path)
    read = page.frames["table"]()
    assert list(dict.fromkeys(read["method"])) == ["FullKV", "SnapKV", "PyramidKV", "CAKE", "CompressKV"]
    assert set(read["n"]) == {3}
    assert set(read["column"]) == {"1K", "2K"}
    means = read[read["method"] == "CAKE"].groupby("metric", sort=False)["mean"].first().to_dict()
    assert means == {"total_s": 1.0, "first_token_s": 0.5, "decode_ms": 10.0, "cache_bytes": 1.0}
    assert "100.00" in markdown(page)  # tokens a second
    assert [len(draw().axes) > 0 for draw in page.figures.values()] == [True]
    with refused("experiment", value="v2_fig6_efficiency"):
        page_of("v2_fig6_efficiency", tmp_path / "empty")


def test_measurements_of_older_versions_have_their_budget_in_the_name(tmp_path):
    names = ("full", "snapkv 128", "cake 64 (released)")
    measurement(tmp_path, "20250101-000000", [{"setting": name} for name in names], 1.0)
    (grid, *_) = page_of("fig8_efficiency", tmp_path).tables
    budgets = {row.label: (row.budget, row.cells["1K"].n) for row in grid.rows}
    assert budgets == {"FullKV": (None, 1), "SnapKV": (128, 1), "CAKE (released)": (64, 1)}


def test_head_scores_need_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSKV_CACHE", str(tmp_path / "cache"))
    shipped = json.loads((FOLDER / "smollm2-135m.held_out.json").read_text())
    other = shipped | {"model": "other", "accepted": {"a": 5}}
    other["head_scores"] = dict.fromkeys(shipped["head_scores"], shipped["head_scores"]["semantic"])
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "other.held_out.json").write_text(json.dumps(other))
    page = page_of("fig11_heads", tmp_path)
    read = page.frames["table"]()
    sums = read.groupby(["model", "ranking"])["share"].sum()
    assert len(sums) == 6  # two rankings of each model, gemma3-270m's shipped ones too
    assert (sums - 1).abs().max() < 1e-5
    models = ("gemma3-270m-held_out-17", "other-held_out-5", "smollm2-135m-held_out-67")
    assert {name: len(draw().axes) > 0 for name, draw in page.figures.items()} == {
        f"figure-{model}": True for model in models
    }
    text = markdown(page)
    assert "| 1 | 18, 7 | 10.72 | 21, 8 | 4.39 |" in text
    assert "10 of the best 10 heads are the same by both rankings" in text
