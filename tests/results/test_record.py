"""Results of all versions are read without the code that wrote them."""

import json

import pytest

from evals.cli import main
from evals.files import write_json
from evals.loggers.wandb import run_id
from evals.results import frame
from evals.results.compare import comparisons
from evals.results.finish import finish
from evals.results.names import names
from evals.results.record import Record, records
from evals.results.store import SampleStore
from tests.support.trees import about, folder, line, setting, version_1


def test_a_record_says_what_the_files_say(tmp_path):
    record = setting(tmp_path, (0.0, 100.0))
    assert (record.model, record.eval, record.task) == ("tiny", "niah", "needle")
    assert (record.protocol, record.method, record.budget, record.digest) == ("corrected", "snapkv", 64, "abcd1234")
    assert record.name == "tiny/niah/needle/corrected/snapkv/64-abcd1234"
    assert record.summary["schema_version"] == 2
    assert (record.summary["score"], record.summary["n"], record.summary["scores"]) == (50.0, 2, {"score_words": 25.0})
    assert record.summary["timing"] == {"seconds": 1.0}
    assert [line["id"] for line in record.covered] == ["0", "1"]
    assert record.config["observation"]["window"] == 8
    assert (record.state, record.problem, record.lines.unchecked) == ("complete", "", 0)


def finished(results, *lines):
    """The record of a setting with these lines, which may be wrong, behind those that it has."""
    store = SampleStore(folder(results))
    for each in lines:
        store.append(each)
    record = finish(store, list(store.lines), about(), results / "runs")
    store.close()
    return record


@pytest.mark.parametrize(("official", "counted"), [([True], None), ([True, False, False], 2)])
def test_a_summary_counts_the_rows_that_are_not_official(tmp_path, official, counted):
    record = finished(tmp_path, *(line(str(n), official=each) for n, each in enumerate(official)))
    assert record.summary.get("unofficial") == counted


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({}, []),
        ({"kl": None, "kl_per_token": []}, []),
        ({"kl": 0.100049, "kl_per_token": [0.2, 0.0]}, []),
        ({"kl": 0.2, "kl_per_token": [0.2, 0.0]}, ["sample 0: kl is 0.2, the mean of kl_per_token 0.1000"]),
        ({"kl": None, "kl_per_token": [0.2]}, ["sample 0: kl or kl_per_token is not made of numbers"]),
    ],
)
def test_the_kl_of_a_sample_follows_from_that_of_its_tokens(tmp_path, fields, problems):
    assert finished(tmp_path, line("0", **fields)).problems == problems


def test_every_folder_with_one_of_the_files_is_found(tmp_path):
    setting(tmp_path)
    for number, name in enumerate(("samples.jsonl", "summary.json", "config.yaml", "other")):
        place = folder(tmp_path, "lone", number)
        place.mkdir(parents=True)
        (place / name).write_text("")
    assert [record.name.split("corrected/")[1] for record in records(tmp_path)] == [
        "lone/0-abcd1234",
        "lone/1-abcd1234",
        "lone/2-abcd1234",
        "snapkv/64-abcd1234",
    ]
    assert [record.method for record in records(tmp_path, "snapkv")] == ["snapkv"]
    assert records(tmp_path / "nowhere") == []


def test_the_path_names_a_setting_that_has_no_summary(tmp_path):
    setting(tmp_path, method="full", budget=None)
    (folder(tmp_path, "full", None) / "summary.json").unlink()
    (record,) = records(tmp_path)
    assert (record.model, record.method, record.budget, record.summary) == ("tiny", "full", None, None)
    assert record.problem == "no summary"
    assert len(record.covered) == 2
    assert record.config["budget"] == 64


def test_version_1_is_read_and_verified(tmp_path):
    version_1(tmp_path)
    (record,) = records(tmp_path)
    assert (record.state, record.lines.unchecked, record.summary["score"]) == ("complete", 1, 40.0)
    assert record.only(["1"]).summary["score"] == 40.0
    summary = record.path / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"score": 41.0}))
    assert "the summary says 41.0 for score" in records(tmp_path)[0].problem


def test_newer_versions_are_read(tmp_path):
    path = setting(tmp_path).path / "summary.json"
    content = json.loads(path.read_text())
    del content["checksum"], content["config"]
    write_json(path, {**content, "schema_version": 3, "score": 51.0, "novel": [1]})
    (again,) = records(tmp_path)
    assert (again.summary["score"], again.summary["novel"], again.problem) == (51.0, [1], "")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"score": NaN}', '{"score": 1}', "\x00\x01", "[" * 10**5])
def test_an_unreadable_summary_is_as_good_as_none(tmp_path, content):
    setting(tmp_path, method="tova")
    record = setting(tmp_path)
    before = (record.path / "summary.json").read_text()
    (record.path / "summary.json").write_text(content)
    broken, sound = records(tmp_path)
    assert (sound.state, broken.summary, len(broken.samples)) == ("complete", None, 2)
    assert broken.problem.startswith("summary.json is not")
    finished(tmp_path)
    assert (record.path / "summary.json").read_text() == before


def test_a_narrower_run_leaves_the_summary_as_it_is(tmp_path):
    store = SampleStore(tmp_path / "runs" / "a")
    for id in ("0", "1", "2"):
        store.append(line(id))
    made = finish(store, ["0", "1", "2"], about(), tmp_path / "runs").summary
    finish(store, ["1"], about(config={"eval": {"limit": 1}}), tmp_path / "runs")
    store.close()
    assert Record(store.folder, tmp_path / "runs").summary == made


def test_samples_of_a_narrower_run(tmp_path):
    setting(tmp_path, (0.0, 100.0, 20.0))
    (record,) = records(tmp_path)
    narrow = record.only(["0", "2"])
    assert (narrow.summary["score"], narrow.summary["n"], narrow.summary["samples"]) == (10.0, 2, ["0", "2"])
    assert narrow.summary["dtype"] == "float32"
    assert [line["id"] for line in narrow.covered] == ["0", "2"]
    assert record.summary["n"] == 3


def test_running_and_stale(tmp_path):
    setting(tmp_path)
    store = SampleStore(folder(tmp_path))
    store.append(line("2"))
    assert records(tmp_path)[0].state == "running"
    store.close()
    assert records(tmp_path)[0].state == "stale: 1 samples are not in the summary"
    with store.path.open("a") as file:
        file.write('{"id": "4", "sc')
    assert records(tmp_path)[0].state == "stale: 1 samples are not in the summary"


def test_lines_without_a_score_are_no_faulty_setting(tmp_path):
    store = SampleStore(tmp_path / "runs" / "tiny" / "calibrate" / "heads-0123")
    store.append({"id": "1", "errors": [1.0]})
    store.close()
    (record,) = records(tmp_path)
    assert (record.model, record.eval) == ("tiny", "calibrate")
    assert (record.state, record.problem) == ("samples without scores", "")


def test_frames(tmp_path):
    assert frame(tmp_path).empty
    setting(tmp_path, (0.0, 100.0))
    setting(tmp_path, (50.0, 70.0), "full", None)
    version_1(tmp_path)
    settings = frame(tmp_path)
    assert settings.set_index("folder")["score"].to_dict() == {
        "tiny/niah/needle/corrected/full/none-abcd1234": 60.0,
        "tiny/niah/needle/corrected/snapkv/64-abcd1234": 50.0,
        "tiny/niah/needle/corrected/snapkv/64-0123abcd": 40.0,
    }
    assert settings["setting"].is_unique
    assert settings["budget"].isna().sum() == 1
    assert settings["score_words"].dropna().tolist() == [30.0, 25.0]
    samples = frame(str(tmp_path), by="sample", pattern="abcd1234")
    assert samples.groupby("method")["score"].mean().to_dict() == {"full": 60.0, "snapkv": 50.0}
    assert samples["covered"].all()
    with pytest.raises(ValueError, match="sample or setting"):
        frame(tmp_path, by="task")


def test_names_say_what_differs(tmp_path):
    def named(*overrides):
        found = []
        for number, window in enumerate(overrides):
            config = {**about()["config"], "observation": {"window": window}, "paths": {"results": str(number)}}
            found.append(setting(tmp_path / str(overrides), digest=f"abcd123{number}", config=config))
        return list(map(str, names(found)))

    made = [setting(tmp_path), setting(tmp_path, method="full", budget=None)]
    assert list(map(str, names(made))) == ["SnapKV 64", "FullKV"]
    assert named(8, 16) == ["SnapKV 64 window=8", "SnapKV 64 window=16"]
    assert named(None, 16, 32) == ["SnapKV 64", "SnapKV 64 window=16", "SnapKV 64 window=32"]
    assert named(4, 4) == ["SnapKV 64 [abcd1230]", "SnapKV 64 [abcd1231]"]


def test_a_record_outside_a_tree_has_its_path_as_name(tmp_path):
    assert Record(tmp_path / "x", tmp_path / "runs").name == str(tmp_path / "x")


def named(tmp_path, **nodes):
    """A setting as it was stored before names were refused, with these nodes in its configuration."""
    content = about()
    return setting(tmp_path, config=content["config"] | nodes)


def test_a_protocol_with_other_fields_is_marked_wherever_it_is_named(tmp_path, capsys):
    changed = {"name": "corrected", "exact_budget": False, "score_dtype": "float32", "newer_field": 1}
    record = named(tmp_path, protocol=changed)
    assert record.protocol == "corrected* exact_budget=false"
    assert record.problems == []
    assert record.name.split("/")[3] == "corrected"
    assert str(names([record, Record(record.path, record.runs)])[0]).startswith("SnapKV 64")
    assert frame(tmp_path)["protocol"].tolist() == [record.protocol]
    assert main(["results", "list", "--results", str(tmp_path)]) == 0
    assert "exact_budget=false" in "".join(capsys.readouterr().out.split())
    assert main(["results", "show", "--results", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["protocol"] == record.protocol
    assert run_id(record) == "tiny-niah-needle-corrected-snapkv-64-abcd1234"


def test_protocols_with_other_fields_are_not_compared_with_the_plain_one(tmp_path):
    changed = {"name": "corrected", "exact_budget": False}
    for digest, method, protocol in (("a" * 8, "snapkv", "corrected"), ("b" * 8, "tova", changed)):
        setting(tmp_path, method=method, digest=digest, config=about()["config"] | {"protocol": protocol})
    assert comparisons(records(tmp_path), "score") == []


@pytest.mark.parametrize(
    ("of_eval", "eval", "kind"),
    [
        ({"_target_": "evals.niah.config.Niah", "name": "niah"}, "niah", "niah"),
        ({"_target_": "evals.jsonl.config.Jsonl", "name": "niah"}, "niah (jsonl)", "jsonl"),
        ({"_target_": "mine.words.Counting", "name": "niah"}, "niah (Counting)", "mine.words.Counting"),
        ({"name": "niah"}, "niah", "niah"),
        ("niah", "niah", "niah"),
    ],
)
def test_an_evaluation_is_what_its_class_is(tmp_path, of_eval, eval, kind):
    record = named(tmp_path, eval=of_eval)
    assert (record.eval, record.kind) == (eval, kind)


def test_a_method_by_anothers_name_is_read_as_what_it_is(tmp_path):
    scorer = {"_target_": "compresskv.semantic_heads.scorer"}
    allocator = {"_target_": "baselines.uniform.allocator"}
    record = named(tmp_path, method={"name": "snapkv", "scorer": scorer, "allocator": allocator})
    assert record.method == "snapkv-semantic_heads"
    assert record.name.split("/")[4] == "snapkv"
    assert named(tmp_path / "other", method={"name": "snapkv", "scorer": {"_target_": "old.name"}}).method == "snapkv"
