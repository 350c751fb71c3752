"""Lines, summaries and prompts in the folder of another setting are found."""

import json
import shutil

import pytest

from evals.results.__main__ import main
from evals.results.finish import finish
from evals.results.lines import encode, owner
from evals.results.provenance import environment, environments
from evals.results.record import records
from evals.results.store import SampleStore, write_json
from tests.support import trees
from tests.support.command import folders, run
from tests.support.refusals import refused
from tests.support.trees import about, folder, line, unfinished


def setting(results, method="snapkv", budget=64, digest="abcd1234", fingerprint="f00d", **fields):
    """A finished setting whose lines name it; returns its folder."""
    lines = [line("0"), line("1")]
    return trees.setting(results, lines, method, budget, digest, model_fingerprint=fingerprint, **fields).path


def faulty(results):
    return [record.path for record in records(results) if record.problems]


def swap(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def files(results):
    return {path: path.read_bytes() for path in results.rglob("*") if path.is_file() and path.name != ".owner"}


def test_lines_that_are_where_they_belong_are_sound_wherever_the_tree_lies(tmp_path):
    setting(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (record,) = records(tmp_path / "b")
    assert (record.state, record.unnamed) == ("complete", 0)
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    assert not faulty(tmp_path / "linked")


@pytest.mark.parametrize("other", [{"method": "cake"}, {"budget": 128}, {"digest": "00001111"}])
@pytest.mark.parametrize("moved", ["folders", "samples.jsonl", "summary.json"])
def test_what_was_swapped_is_named(tmp_path, other, moved):
    first, second = setting(tmp_path), setting(tmp_path, **other)
    assert not faulty(tmp_path)
    swap(*((first, second) if moved == "folders" else (first / moved, second / moved)))
    assert set(faulty(tmp_path)) == {first, second}
    assert main(["verify", "--results", str(tmp_path)]) == 1


def store_of(results, weights="f00d"):
    """The store of the setting, as a run with these weights opens it."""
    return SampleStore(folder(results), owner(folder(results), results / "runs", weights))


def finish_with(store, results, ids=("0", "1")):
    record = finish(store, list(ids), about(model_fingerprint="f00d"), results / "runs")
    store.close()
    return record


def test_lines_of_other_weights_are_named(tmp_path):
    place = setting(tmp_path)
    foreign = line("2") | {"of": owner(place, tmp_path / "runs", "beef")}
    with (place / "samples.jsonl").open("ab") as file:
        file.write(encode(foreign))
    assert faulty(tmp_path) == [place]
    with refused(None):
        store_of(tmp_path)


def test_a_folder_that_was_renamed_is_named(tmp_path):
    place = setting(tmp_path)
    (place / "summary.json").unlink()
    place.rename(place.with_name("128-abcd1234"))
    assert faulty(tmp_path) == [place.with_name("128-abcd1234")]


def test_a_summary_of_another_setting_is_not_written_over(tmp_path):
    """Older summaries do not name their folder, but describe their setting."""
    place, other = setting(tmp_path), setting(tmp_path, digest="00001111", dtype="bfloat16")
    summary = json.loads((other / "summary.json").read_text())
    write_json(place / "summary.json", {key: summary[key] for key in summary if key not in ("folder", "checksum")})
    before = files(tmp_path)
    store = SampleStore(place)
    with refused(None):
        finish_with(store, tmp_path)
    store.close()
    assert files(tmp_path) == before


def test_a_foreign_configuration_is_named_and_put_right(tmp_path):
    place = setting(tmp_path)
    (place / "config.yaml").write_text("budget: 1\n")
    assert faulty(tmp_path) == [place]
    finish_with(SampleStore(place), tmp_path)
    assert not faulty(tmp_path)


def test_lines_of_older_versions_stay_readable_and_are_counted(tmp_path, capsys):
    unfinished(tmp_path, ids=["0"])
    again = store_of(tmp_path)
    again.append(line("1"))
    finish_with(again, tmp_path)
    (record,) = records(tmp_path)
    assert (record.state, record.unnamed, len(record.samples)) == ("complete", 1, 2)
    assert main(["verify", "--results", str(tmp_path)]) == 0
    assert "1 lines of older versions do not name" in capsys.readouterr().out


def test_a_link_that_leads_back_does_not_end_the_listing(tmp_path):
    place = setting(tmp_path)
    shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "elsewhere")
    (place / "back").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [record.path.parts[-6] for record in records(tmp_path)] == ["linked", "tiny"]
    assert len(faulty(tmp_path)) == 1  # its lines say `tiny`


def test_a_summary_names_all_environments_of_its_lines(tmp_path, monkeypatch):
    commits = ("old", "old", "old", "new", "new")
    for number, commit in enumerate(commits):
        monkeypatch.setattr("evals.results.store.environment", lambda commit=commit: {"key": commit, "git": commit})
        store = store_of(tmp_path)
        store.append(line(str(number)))
        store.close()  # as one that was killed: no summary
    summary = finish_with(store_of(tmp_path), tmp_path, map(str, range(5))).summary
    assert environments(summary) == [{"key": "old", "git": "old"}, {"key": "new", "git": "new"}]
    written = [json.loads(text)["timing"]["environment"] for text in store.path.open()]
    assert written == [{"key": "old", "git": "old"}, "old", "old", {"key": "new", "git": "new"}, "new"]
    assert not faulty(tmp_path)


def test_lines_of_older_versions_come_from_where_their_summary_said(tmp_path):
    place, runs = folder(tmp_path), tmp_path / "runs"
    place.mkdir(parents=True)
    (place / "samples.jsonl").write_bytes(encode(line("0")))
    store = SampleStore(place)
    finish(store, ["0"], about(), runs)
    summary = json.loads((place / "summary.json").read_text())
    write_json(place / "summary.json", summary | {"environment": {"git_commit": "older"}})
    for number in ("1", "2"):
        store.append(line(number))
        summary = finish(store, [str(n) for n in range(int(number) + 1)], about(), runs).summary
    store.close()
    assert environments(summary) == [environment(), {"git_commit": "older"}]


def test_a_rerun_over_swapped_folders_or_another_prompt_refuses_and_changes_nothing(checkpoint, tmp_path):
    """The code of an evaluation may build other prompts without changing its identity."""
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu", "eval.max_new_tokens=4"]
    grid = ["eval.lengths=[200]", "eval.depths=2", f"paths.results={tmp_path / 'out'}"]

    def refuses(*methods):
        before = files(tmp_path / "out" / "runs")
        done = run("-m", f"method={','.join(methods)}", "budget=64", *grid, *model)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert files(tmp_path / "out" / "runs") == before
        return done.stderr

    assert run("-m", "method=snapkv,knorm", "budget=64", *grid, *model).returncode == 0
    knorm, snapkv = folders(tmp_path)
    swap(knorm, snapkv)
    refuses("snapkv", "knorm")
    assert set(faulty(tmp_path / "out")) == {knorm, snapkv}
    swap(knorm, snapkv)
    first, second = map(json.loads, (snapkv / "samples.jsonl").open())
    (snapkv / "samples.jsonl").write_bytes(encode(first | {"prompt_sha256": "0" * 16}) + encode(second))
    assert first["id"] in refuses("snapkv")
