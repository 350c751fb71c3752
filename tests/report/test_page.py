"""The report page without a browser: its content, escaping of results, and messages about missing data."""

import html
import json
import re

import pytest

from evals.experiments import ALL
from evals.report.__main__ import main
from evals.report.html import reading, scores
from evals.report.html.chart import Chart, Line, Point
from evals.report.html.reading import read
from evals.report.html.writing import embeddable, page, write
from evals.results.record import records
from evals.results.tails import tails
from evals.tables.compare import Verdict, verdicts
from tests.support.refusals import refused
from tests.support.trees import efficiency, line, longbench, needles, setting

HOSTILE = "</script><script>alert(1)</script><!-- \x1b[31mred\x9b [bold]x[/bold] [d9676eeb] \u202e &amp; \u2028"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results for every section of the page, of models with calibrations and published numbers."""
    folder = tmp_path_factory.mktemp("tree")
    needles(folder, "smollm2-135m")
    longbench(folder, "mistral-7b-instruct-v0.3")
    setting(folder, [line("1", 40, 64), line("2", 60, 64)], "snapkv", 64, model="tiny", eval="jsonl", task="mine")
    for ranking, count, score in (("none", 0, 90), ("semantic", 3, 20), ("random", 3, 80)):
        fields = {"ranking": ranking, "masked": count}
        lines = [line(f"L500-D{depth}-N0", score + depth / 50, None, **fields) for depth in (0, 100)]
        setting(folder, lines, "full", None, model="tiny", eval="head_masking", task=f"{ranking}-{count}")
    efficiency(folder, "smollm2-135m")
    return folder


@pytest.fixture(scope="module")
def text(results):
    return page(results)


def data(text):
    """The JSON data of the page's script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def sections(text):
    return re.findall(r'<section id="(\w+)"', text)


def plain(text):
    """The visible text of the page's HTML."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_every_section_has_its_data(text):
    expected = ["overview", "budgets", "verdicts", "masking", "longbench", "needles", "others", "layers", "heads"]
    assert sections(text) == [*expected, "efficiency", "samples", "settings"]
    links = re.findall(r'<li><a href="#(\w+)">', text)
    assert links == sections(text)
    assert len(text.encode()) < 1e6


def test_it_needs_nothing_else_and_is_the_same_every_time(results, text):
    assert not re.search(r"(src|href)=\"(?!#|data:,\")", text)
    assert "@import" not in text
    assert "url(" not in text
    assert re.search(r"script-src 'sha256-[\w+/]+=*'", text)
    assert page(results) == text


def test_verdicts_in_words(text):
    words = plain(text)
    assert "At budget 64, CompressKV is better than SnapKV by 22.8 points (95 % interval 21.8 to 23.7, p" in words
    assert re.search(
        r"CompressKV at budget 128 scores [\d.]+: 9\d % of the full cache's [\d.]+, keeping \d+ % of", words
    )


def test_tails_of_fidelity_are_below_the_scores(tmp_path):
    needles(tmp_path, depths=2, budgets=(64,))
    (measured,) = tails(records(tmp_path))
    shown = plain(page(tmp_path))
    assert measured.title in shown
    below = shown[shown.index(measured.title) :]
    for row in measured.body:
        assert re.search(r"\s*".join(map(re.escape, row)), below)


@pytest.mark.parametrize(("mean", "bounds", "better"), [(-5.0, (-8.0, -2.0), "first"), (5.0, (2.0, 8.0), "second")])
def test_a_difference_is_told_from_the_better_one(mean, bounds, better):
    verdict = Verdict("tiny", "niah", 64, "first", "second", mean, bounds, 0.01, 20, 40)
    said = scores.sentence(verdict)
    assert verdict.outcome == "differs"
    assert said.startswith(f"At budget 64, {better} is better than")
    assert "by 5.0 points (95\u00a0% interval 2.0 to 8.0" in said
    undecided = Verdict("tiny", "niah", 64, "first", "second", mean, bounds, 0.4, 20, 1234)
    same = scores.sentence(undecided)
    assert undecided.outcome == "undecided"
    assert f"({better}'s mean is 5.0 points higher" in same
    assert "1,234 samples" in same


def test_a_lower_kl_is_closer():
    verdict = Verdict("tiny", "niah", 64, "first", "second", 0.25, (0.1, 0.4), 0.01, 20, 40, "kl", lower=True)
    text = scores.sentence(verdict)
    assert "first is closer to the full cache than second by 0.250 nats per token (95\u00a0%" in text
    assert "interval 0.100 to 0.400" in text


def test_best_and_second_are_marked_within_a_budget(text):
    table = re.search(r'<section id="needles">.*?</table>', text, re.S)[0]
    rows = {}
    for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.S):
        rows[re.search(r"<th[^>]*>(.*?)</th>", row)[1]] = row
    assert rows["CompressKV"].count("<strong>") == 3
    assert rows["SnapKV"].count("<u>") == 3
    assert "<strong>" not in rows["FullKV"] + rows["StreamingLLM"]


def test_part_of_the_samples_is_no_headline(text):
    """LongBench has a few rows here, which are not official."""
    table = re.search(r'<section id="longbench">.*?(<table.*?</table>)', text, re.S)[1]
    assert "†" in table
    assert "<strong>" not in table
    assert "<u>" not in table
    longbench, needle = re.split(r"<h3>", re.search(r'<section id="verdicts">.*?</section>', text, re.S)[0])[1:3]
    assert "better than" not in re.sub(r"<details.*?</details>", "", longbench, flags=re.S)
    assert "full cache's" not in longbench
    assert "better than" in re.sub(r"<details.*?</details>", "", needle, flags=re.S)


def test_a_variant_breaks_no_line(tmp_path):
    """A method with variants at some budgets has one line for its default, which is compared at every budget."""
    node = {"name": "compresskv", "scorer": {"_target_": "compresskv.semantic_heads.scorer", "heads": None}}
    for budget in (64, 128):
        setting(tmp_path, [40, 41, 42, 43], "snapkv", budget, experiment="fig5_niah")
        for heads in (None, 1, 3) if budget == 64 else (None,):
            own = {**node, "scorer": {**node["scorer"], "heads": heads}}
            setting(tmp_path, [60, 61, 62, 63], "compresskv", budget, f"{heads or 0:08}", "fig5_niah", own)
    (board,) = scores.boards(read(tmp_path))
    labels = {each.label: len(each.points) for each in board.score.lines}
    assert labels == {"CompressKV": 2, "SnapKV": 2, "CompressKV heads=1": 1, "CompressKV heads=3": 1}
    assert list(labels)[:2] == ["CompressKV", "SnapKV"]
    assert [verdict.budget for verdict in verdicts(ALL, board.table)] == [128, 64]


def test_every_line_has_a_style_of_its_own():
    looks = [Line("", [], style).look for style in range(scores.LINES)]
    assert len({look[:2] for look in looks}) == len(looks)


def test_the_papers_methods_come_first(tmp_path):
    for method in ("knorm", "random", "snapkv", "tova", "streaming_llm", "compresskv", "full"):
        setting(tmp_path, [40, 41, 42, 43], method)
    (board,) = scores.boards(read(tmp_path))
    names = ["CompressKV", "StreamingLLM", "SnapKV", "Random", "TOVA", "Key norm", "FullKV"]
    assert [each.label for each in board.score.lines] == names
    rows = [row.label for row in board.table.rows]
    assert rows == ["FullKV", "StreamingLLM", "SnapKV", "CompressKV", "Random", "TOVA", "Key norm"]


def test_efficiency_shows_pools(text):
    section = re.search(r'<section id="efficiency">.*?</section>', text, re.S)[0]
    rows = re.findall(r'<tr><th scope="row">(FullKV|CompressKV 64)</th>(.*?)</tr>', section, re.S)
    pools = {(name, *re.findall(r"<td[^>]*>(.*?)</td>", cells)[:4]) for name, cells in rows if cells.count("<td") == 11}
    assert {("FullKV", "1000", "16", "64", "0: does not fit"), ("CompressKV 64", "2000", "16", "256", "2")} < pools
    assert "90.0 ×1.00" in section
    chart = re.search(r"<figcaption>Tokens per second[^<]*2000 tokens.*?</figure>", section, re.S)[0]
    assert chart.count('<path class="line" d="M') >= 2


def test_published_numbers_stand_apart_where_not_comparable(text):
    cells = re.findall(r'<small class="paper apart">(.*?)</small>', text)
    assert "paper 47.82, not comparable: protocol=corrected" in cells
    assert 'class="paper">' not in text
    assert "Published scores, not measured here" in text


def test_the_script_has_the_heatmaps_heads_samples_and_provenance(text):
    embedded = data(text)
    (board,) = embedded["panels"]
    assert (board["columns"], board["rows"]) == (["1K", "2K"], ["0", "25", "50", "75", "100"])
    panel = next(panel for panel in board["panels"] if (panel["method"], panel["budget"]) == ("CompressKV", 128))
    assert panel["mean"] == pytest.approx(sum(map(sum, panel["cells"])) / 10, abs=0.1)
    assert {(each["model"], each["source"]) for each in embedded["maps"]} >= {
        ("smollm2-135m", "held_out"),
        ("mistral-7b-instruct-v0.3", "published"),
    }
    shared = embedded["shared"]
    for each in embedded["settings"]:
        assert shared[each["environment"]]["git_commit"].startswith("0123")
        assert shared[each["environment"]]["hardware"]["cpu"] == "a processor"
        assert shared[each["origin"]]["dtype"] == "float32"
        assert dict(shared[each["config"]]).keys() >= {"model", "method", "eval", "protocol", "budget"}
        assert shared[each["batches"]] == [["corrected/compresskv/64-abcd1234", "corrected/snapkv/64-abcd1234"]]
    prompt = next(sample for sample in embedded["samples"] if sample["at"][1] == "niah")
    assert prompt["prompt"]["question"] == "What is the best thing to do?"
    assert len(prompt["by"]) == 7
    assert embedded["settings"][prompt["by"][0]["setting"]]["name"] == "FullKV"
    assert prompt["prompt"]["prompt_tail"] == "the end of the prompt of L1000-D0-N0"
    after = prompt["by"][2]
    assert embedded["settings"][after["setting"]]["name"] == "CompressKV 128"
    assert after["kept"] == [104.0, 112.0, 120.0, 128.0, 136.0, 144.0]
    assert after["kl"] == 0.1
    assert after["kl_per_token"] == [0.05, 0.15]


def test_model_output_and_names_are_text(tmp_path):
    lines = [line(f"{n}{HOSTILE}", 50.0, 64, prediction=HOSTILE, answers=[HOSTILE], ranking=HOSTILE) for n in "ab"]
    setting(tmp_path, lines, "snapkv[bold]", 64, model="<b>m</b>", eval="jsonl", task="t&[red]", digest="abcd1234")
    (tmp_path / "efficiency" / "m").mkdir(parents=True)
    text = page(tmp_path)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<!--" not in text
    assert "<b>m</b>" not in text
    assert not set(text) & {"\x1b", "\x9b", "\u202e", "\u2028"}
    (first, _) = data(text)["samples"]
    seen = "</script><script>alert(1)</script><!-- ␛[31mred<U+009B> [bold]x[/bold] [d9676eeb] <U+202E> &amp; \u2028"
    assert first["by"][0]["prediction"] == seen
    assert "<b>m</b>" in plain(text)
    assert "snapkv[bold]" in plain(text)


def test_embedded_json_is_what_it_was():
    value = {"<!--</script>": ["&<>", 1.5, None, "\ud800"]}
    text = embeddable(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"<!--</script>": ["&<>", 1.5, None, "<U+D800>"]}


def test_what_is_missing_is_one_sentence(tmp_path):
    setting(tmp_path, [line("1", 40, 64)], "snapkv", 64, model="tiny", eval="jsonl", task="mine")
    text = page(tmp_path)
    assert sections(text) == ["overview", "budgets", "verdicts", "others", "layers", "samples", "settings"]
    missing = "Head masking, LongBench, Long answers, Needles, RULER, Heads, Efficiency"
    assert f": {missing}." in plain(text)
    assert "KL to the full cache was not measured here." in plain(text)
    assert "nothing is compared" in plain(text)


def test_partial_trees(tmp_path):
    needles(tmp_path, depths=2, lengths=(1000,), budgets=(64,))
    folders = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    (folders[0] / "summary.json").unlink()
    broken = folders[1] / "samples.jsonl"
    broken.write_bytes(broken.read_bytes().replace(b'"score": ', b'"score": 1', 1))
    (folders[2] / "summary.json").write_text("{")
    for name in ("one", "two"):
        (tmp_path / "efficiency" / "tiny" / name).mkdir(parents=True)
    (tmp_path / "efficiency" / "tiny" / "one" / "efficiency.json").write_text('{"rows": 3}')
    text = page(tmp_path)
    assert "2 settings have no summary yet and are not shown." in plain(text)
    assert "samples.jsonl:1: sample L1000-D0-N0 was changed after it was written" in plain(text)
    assert "covers 1 samples that are not there" in plain(text)
    assert "efficiency/tiny/one/efficiency.json: not a measurement" in plain(text)
    assert len(data(text)["settings"]) == 2


def test_lines_without_texts(tmp_path):
    """Published trees may lack predictions and answers."""
    stripped = [
        {key: value for key, value in line("0", 40, 64).items() if key not in ("prediction", "batch", "timing")}
    ]
    setting(tmp_path, stripped, "snapkv", 64, model="tiny", eval="longbench", task="qasper")
    text = page(tmp_path)
    assert "†0 of 200" in plain(text)
    assert "prediction" not in data(text)["samples"][0]["by"][0]


def test_settings_are_named_by_their_parameters_where_only_config_yaml_has_them(tmp_path):
    """Published trees may lack the configuration in their summaries."""
    for heads, digest in ((1, "aaaaaaaa"), (3, "bbbbbbbb")):
        folder = setting(tmp_path, [line("0", 40, 64)], "compresskv", 64, digest=digest).path
        summary = json.loads((folder / "summary.json").read_text())
        config = summary.pop("config")
        config["method"]["scorer"] = {"_target_": "baselines.compresskv.scorer", "heads": heads}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "config.yaml").write_text(json.dumps(config))
    shown = plain(page(tmp_path))
    assert "CompressKV heads=1" in shown
    assert "CompressKV heads=3" in shown
    assert "aaaaaaaa" not in shown


def test_a_page_needs_results_and_a_folder_to_write_to(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with refused("results", value=folder):
            write(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    needles(tmp_path, depths=1, lengths=(1000,), budgets=(64,))
    with refused("paths.results"):
        write(tmp_path, tmp_path / "file")


def test_the_page_goes_to_report_where_no_place_is_named(tmp_path, capsys, monkeypatch):
    needles(tmp_path / "tree", depths=1, lengths=(1000,), budgets=(64,))
    monkeypatch.chdir(tmp_path)
    assert main(["tree"]) == 0
    assert (tmp_path / capsys.readouterr().out.strip()) == tmp_path / "report" / "index.html"
    assert (tmp_path / "report" / "index.html").exists()


def test_the_browser_is_limited_and_says_so(results, monkeypatch):
    monkeypatch.setattr(reading, "EMBEDDED", 20)
    monkeypatch.setattr(reading, "LONGEST", 5)
    text = page(results)
    samples = data(text)["samples"]
    shown = sum(len(sample["by"]) for sample in samples)
    assert 0 < shown <= 20
    assert f"This page has {shown} of" in plain(text)
    assert samples[0]["by"][0]["prediction"].startswith("the a… (")


def test_a_chart_spans_its_intervals():
    chart = Chart("t", "x", "y", [Line("a", [Point(64, 3.0, 1.0, 9.7), Point(128, 4.0)], 0)], log=True)
    assert chart.y_ticks[0] == 0
    assert chart.y_ticks[-1] >= 9.7
    assert chart.y(9.7) < chart.y(1.0)
    flat = Chart("t", "x", "y", [Line("a", [Point(64, 0.0)], 0)], log=True)
    assert flat.y(0.0) > flat.y(flat.y_ticks[-1])
