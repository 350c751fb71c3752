"""Reports of trees with changed or damaged files show the sound ones and name the faults."""

import html
import json
import re
import shutil
from random import Random

import pytest

from compresskv.errors import UserError
from evals.report import artefacts
from evals.report.html.writing import page
from evals.report.latex import latex
from evals.report.markdown import markdown
from evals.results import frame
from evals.results.lines import sealed
from evals.results.record import records
from tests.report import mutated
from tests.support.refusals import refused
from tests.support.trees import efficiency, line, setting

ITEMS = (
    *("fig5_niah", "table1_longbench", "fig9_budgets", "fig7_masking", "fig8_efficiency", "fig1_attention"),
    "fig11_heads",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return mutated.tree(tmp_path_factory.mktemp("whole") / "results")


@pytest.fixture
def results(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "results")


def everything(results):
    """Render everything that reports make of a tree, except images; returns the page."""
    for item in ITEMS:
        try:
            shown = artefacts.page_of(item, results)
        except UserError:  # nothing of it is left
            continue
        markdown(shown), latex(shown)
        for made in shown.frames.values():
            made()
    frame(results), frame(results, "sample")
    return html.unescape(page(results))


def test_nothing_that_stands_in_a_file_takes_reports_down(whole, tmp_path):
    random = Random(0)
    for turn in range(5):
        results = shutil.copytree(whole, tmp_path / str(turn))
        done = mutated.mutate(results, random)
        try:
            everything(results)
        except Exception as error:
            pytest.fail(f"{error!r} of {done}")


def edit(path, *place, value):
    content, written = mutated.contents(path)
    path.write_text(written(mutated.changed(content, place, value)))


def test_what_is_left_out_is_named_and_the_rest_is_drawn(results):
    place = results / "runs" / "tiny"
    niah, longbench, jsonl = (
        place / kind / task / "corrected" / "compresskv" / "64-abcd1234"
        for kind, task in (("niah", "needle"), ("longbench", "qasper"), ("jsonl", "mine"))
    )
    edit(niah / "samples.jsonl", 0, "depth", value="deep")
    edit(longbench / "samples.jsonl", 0, "score", value=...)
    edit(jsonl / "summary.json", "interval", value=[1])
    edit(results / "efficiency" / "tiny" / "20260101-000000" / "efficiency.json", "rows", 0, "length", value="long")
    edit(results / "calibration" / "tiny.held_out.json", "heads", value=-1)
    edit(results / "attention" / "tiny" / "one.json", "heads", value=[])
    text = everything(results)
    for named in ("needle/corrected/compresskv/64-abcd1234: sample L1000-D50-N0: depth=deep",
                  "qasper/corrected/compresskv/64-abcd1234: sample 0", "mine/corrected/compresskv/64-abcd1234",
                  "rows.0 is left out (length=long", "heads=-1"):  # fmt: skip
        assert named in text
    shown = json.loads(text.split('id="data">')[1].split("</script>")[0].encode().decode())["settings"]
    assert {(each["method"], each["n"]) for each in shown} == {("full", 2), ("compresskv", 1)}
    with refused("experiment", value="fig1_attention"):
        artefacts.page_of("fig1_attention", results)
    assert any("depth=deep" in note for note in artefacts.page_of("fig5_niah", results).notes)


SCORES = ("null", '"50"', "NaN", "1e999", "true", "[50]", "9" * 400)


def test_a_score_that_is_no_number_is_not_counted(tmp_path):
    """Also where the checksum fits, which is then over no number."""
    path = setting(tmp_path, [line("0", 40, 64)]).path / "samples.jsonl"
    bad = [json.dumps({"id": str(n), "score": 0}).replace(": 0}", f": {score}}}") for n, score in enumerate(SCORES, 1)]
    bad.append(json.dumps(sealed(line("2", 1.5, 64))).replace('"score": 1.5', '"score": 1e999'))
    path.write_text(path.read_text() + "".join(f"{text}\n" for text in bad))
    [record] = records(tmp_path)
    assert list(record.samples) == ["0"]
    assert list(record.line_faults) == list(range(2, 2 + len(bad)))
    assert "samples.jsonl:2" in page(tmp_path)


def test_a_pool_of_a_tiny_model_is_drawn(tmp_path):
    efficiency(tmp_path)
    [path] = tmp_path.rglob("efficiency.json")
    content = json.loads(path.read_text())
    for row in content["concurrency"]:
        row |= {"pool_mb": 0.03, "sequence_bytes": 9e3}
    path.write_text(json.dumps(content))
    assert re.search("<figcaption>Tokens per second", page(tmp_path))


DAMAGES = {
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
    "other bytes": lambda path: path.write_bytes(b"\xff\xfe\x00" * 9),
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_files_that_are_none(results, damage):
    for path in mutated.one_of_each_folder(results):
        damage(path)
    everything(results)


def test_trees_with_nothing_but_failures_or_files_for_folders(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "niah" / "needle" / "corrected" / "snapkv" / "64-abcd1234"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text(json.dumps(sealed({"id": "1", "error": "out of memory"})) + "\n")
    for name in ("efficiency", "attention", "calibration", "artefacts"):
        (tmp_path / name).write_text("")
    assert "1 setting" in page(tmp_path)
    for item in ITEMS:
        with pytest.raises(UserError):
            artefacts.write(item, tmp_path)
