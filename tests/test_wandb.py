"""The data sent to W&B, read from the file of an offline run."""

import json
import struct

import matplotlib.pyplot as plt
import numpy as np
import pytest
import wandb

from compresskv.calibration import FOLDER
from evals.loggers.push import push
from evals.loggers.wandb import WandbLogger, artifact_name, progress_id, run_id, safe_id, samples
from evals.loggers.wandb import measured as numbers_of
from evals.progress import Progress
from evals.results.measurement import Measurement
from evals.results.record import Record
from evals.running.outcome import Entry, show
from tests.support.jobs import job
from tests.support.refusals import refused
from tests.support.trees import line, setting, unfinished

BLOCK = 1 << 15


@pytest.fixture
def sent_by(tmp_path, monkeypatch):
    """Lets a logger send data; returns the content of each offline run's file: configuration, numbers, id, tags."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    def send(act, directory="wandb"):
        act(WandbLogger("project", None, None, ("mine",), "a note", "offline", str(tmp_path / directory)))
        wandb.teardown()  # its process has written everything
        return [read(path) for path in sorted((tmp_path / directory).rglob("run-*.wandb"))]

    return send


@pytest.fixture
def sent(sent_by):
    """Sends records."""
    return lambda records, figures=(): sent_by(lambda logger: logger.log(records, figures))


def apart(runs):
    """The overview, and the runs of settings."""
    (overview,) = (run for run in runs if run["id"].startswith("overview-"))
    return overview, [run for run in runs if run is not overview]


def entries(content):
    """The entries of a W&B file: after 7 bytes, blocks of 32 KiB as LevelDB's log has them.

    A part of an entry has its checksum (4 bytes), length (2) and kind (1): whole 1, first 2, middle 3, last 4.
    """
    place, entry = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # too little for another part
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        entry += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""


def read(path):
    from wandb.proto import wandb_internal_pb2

    content = {"numbers": {}, "history": 0, "files": {}, "folder": path.parent}
    for data in entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run") and "config" not in content:
            content |= {
                "id": record.run.run_id,
                "tags": list(record.run.tags),
                "group": record.run.run_group,
                "notes": record.run.notes,
            }
            content["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        content["history"] += record.HasField("history")
        if record.HasField("artifact"):
            content["files"][record.artifact.name] = {entry.path for entry in record.artifact.manifest.contents}
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            content["numbers"][key] = json.loads(item.value_json)
    return content


def test_a_setting_is_a_run_with_what_people_filter_by(tmp_path, sent):
    fields = {"backend": "sdpa", "model_fingerprint": "abc"}
    _, [run] = apart(sent([setting(tmp_path, [0.0, 100.0, 50.0], **fields)]))
    assert run["numbers"]["score"] == 50
    assert run["numbers"]["n"] == 3
    assert run["numbers"]["score_words"] == 25
    assert run["numbers"]["score_low"] <= 50 <= run["numbers"]["score_high"]
    assert run["config"]["setting"]["task"] == "needle"
    assert run["config"]["dtype"] == "float32"
    assert run["config"]["backend"] == "sdpa"
    assert run["config"]["model_fingerprint"] == "abc"
    assert run["config"]["environment"]["versions"]["torch"]
    assert {"tiny", "niah", "needle", "corrected", "snapkv", "mine"} == set(run["tags"])
    assert run["notes"] == "a note"
    assert run["group"] == "tiny niah"
    assert run["files"]["tiny-niah-needle-corrected-snapkv-64-abcd1234"] == {
        *("config.yaml", "samples.jsonl", "summary.json")
    }


def test_settings_have_artifacts_of_their_own_and_one_overview(tmp_path, sent):
    """Two budgets of a method share a hash; the full cache has no budget, whatever was swept."""
    small, large = (setting(tmp_path, [50.0, budget / 2], budget=budget) for budget in (64, 128))
    full = setting(tmp_path, [100.0, 100.0], "full", None, config={"budget": 64})
    picture = tmp_path / "niah.png"
    plt.imsave(picture, np.zeros((2, 2)))
    overview, runs = apart(sent([small, large, full], [picture]))
    runs.sort(key=lambda run: run["config"]["budget"] or 1000)
    assert len({name for run in runs for name in run["files"] if not name.endswith("-samples")}) == 3
    assert [run["config"]["budget"] for run in runs] == [64, 128, None]
    columns, rows = table(overview, "settings")
    assert [row[columns.index("budget")] for row in rows] == [64, 128, None]
    assert [row[columns.index("score")] for row in rows] == [41.0, 57.0, 100.0]
    assert any(key.startswith("niah.") for key in overview["numbers"])
    assert not any(key.startswith("niah.") for run in runs for key in run["numbers"])


def test_progress_is_sent_while_it_runs(tmp_path, sent_by):
    words = ["method=snapkv", "eval.lengths=[1000]"]
    jobs = [job(*words, f"budget={budget}", f"paths.results={tmp_path}") for budget in (64, 128)]

    def act(logger):
        with logger.watched(jobs) as report, Progress(report=report).track("needles", ["a", "b", "c"]) as prompts:
            for _ in prompts:
                pass

    (run,) = sent_by(act)
    assert run["numbers"].items() >= {"task": "needles", "prompts": 3, "of": 3}.items()
    assert run["history"] == 3
    assert run["group"] == "smollm2-135m niah"
    # The same command continues it, from wherever.
    assert run["id"] == progress_id([job(*words, f"budget={budget}") for budget in (64, 128)])
    assert run["id"] != progress_id(jobs[:1])


def test_a_setting_keeps_its_run_and_others_have_their_own(tmp_path):
    first, other = setting(tmp_path, digest="aaaa1111"), setting(tmp_path, digest="bbbb2222")
    again = Record(first.path, first.runs)
    assert run_id(first) == run_id(again) != run_id(other)


def test_a_hybrid_model_has_both_sums():
    sizes = {"cache_bytes": 390, "total_cache_bytes": 8290}
    assert numbers_of({"score": 50.0, "interval": None, **sizes}).items() >= sizes.items()


def test_the_table_of_samples(tmp_path):
    columns, rows = samples(setting(tmp_path, [0.0, 100.0]))
    assert {"id", "prediction", "kept", "score", "score_words"} <= set(columns)
    assert len(rows) == 2
    assert rows[0][columns.index("kept")] == "[40, 48, 56, 64, 72, 80]"
    assert rows[1][columns.index("prediction")] == line("1")["prediction"]


EFFICIENCY = {
    "model": "tiny",
    "dtype": "float32",
    "new_tokens": 4,
    "environment": {"git_commit": "abc"},
    "rows": [
        {"setting": "full", "length": 200, "decode_ms": 2.5, "peak_bytes_by_gpu": []},
        {"setting": "snapkv 64", "length": 200, "decode_ms": 1.5, "peak_bytes_by_gpu": [], "decode_ms_ratio": 0.6},
    ],
    "concurrency": [{"setting": "full", "pool_mb": 64, "sequences": 2, "tokens_per_s_spread": [80.0, 99.0]}],
}


@pytest.fixture
def measured(tmp_path):
    """A results tree with a measurement of efficiency."""
    path = tmp_path / "efficiency" / "tiny" / "1" / "efficiency.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(EFFICIENCY))
    return path


def table(run, name):
    """Columns and rows of a table of a run."""
    (file,) = run["folder"].rglob(f"{name}_*.table.json")
    content = json.loads(file.read_text())
    return content["columns"], content["data"]


def test_a_measurement_is_a_run_with_its_table(tmp_path, measured, sent_by):
    (run,) = sent_by(lambda logger: logger.log_measurements([Measurement(measured, "tiny", "efficiency")]))
    assert run["config"]["dtype"] == "float32"
    assert run["config"]["environment"]["git_commit"] == "abc"
    assert "rows" not in run["config"]
    columns, rows = table(run, "rows")
    assert columns == ["setting", "length", "decode_ms", "peak_bytes_by_gpu", "decode_ms_ratio"]
    assert rows == [["full", 200, 2.5, "[]", None], ["snapkv 64", 200, 1.5, "[]", 0.6]]
    assert table(run, "concurrency")[1] == [["full", 64, 2, "[80.0, 99.0]"]]
    assert set(run["tags"]) == {"tiny", "efficiency", "mine"}
    assert run["group"] == "tiny efficiency"


def test_a_calibration_has_a_row_for_each_head(tmp_path):
    shipped = json.loads((FOLDER / "smollm2-135m.held_out.json").read_text())
    calibration = Measurement(FOLDER / "smollm2-135m.held_out.json", "smollm2-135m", "calibrate")
    columns, rows = calibration.tables["head_scores"]
    assert columns == ["layer", "head", "semantic", "semantic_count", "traditional"]
    assert len(rows) == 30 * 9
    assert rows[10][:3] == [1, 1, shipped["head_scores"]["semantic"][1][1]]
    assert calibration.tables["layer_scores"][1][3] == [3, shipped["layer_scores"][3]]
    assert calibration.about["heads"] == shipped["heads"]


def test_a_run_without_samples_is_logged_too(measured):
    """The end of a run sends a measurement, also without samples."""

    class Collecting:
        def log(self, records, figures):
            self.records = list(records)

        def log_measurements(self, measurements):
            self.measurements = list(measurements)

    logger = Collecting()
    entry = Entry("tiny", "efficiency", "", "efficiency", "ran", str(measured), written=str(measured))
    show([entry], logger)
    assert logger.records == []
    assert logger.measurements == [Measurement(measured, "tiny", "efficiency")]


def test_what_is_finished_is_sent_later_as_it_would_have_been(tmp_path, sent_by, measured, capsys):
    done = setting(tmp_path, [0.0, 100.0])
    unfinished(tmp_path, "tova")
    # A folder that the logger writes to has a name with a comma: it is a value of Hydra's grammar.
    where = f"logger.directory='{tmp_path}/wan,db'"
    runs = sent_by(lambda _: push([str(tmp_path), "logger.mode=offline", where]), "wan,db")
    by_id = {run["id"]: run for run in runs}
    assert len(by_id) == 3  # with the overview
    assert by_id[run_id(done)]["numbers"]["score"] == 50
    assert table(by_id[run_id(done)], "samples")[0][0] == "id"
    assert "tiny/niah/needle/corrected/tova/64-abcd1234: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ([], "push-wandb"),
        (["another"], "push-wandb"),
        (["budget=3"], "budget"),
        (["logger.mod=offline"], "logger.mod"),
    ],
)
def test_what_cannot_be_sent_is_a_sentence(tmp_path, measured, words, field):
    if not words:
        measured.unlink()
    with refused(field):
        push([str(tmp_path), *words])


def test_settings_without_a_summary_are_not_sent(tmp_path):
    unfinished(tmp_path)
    with refused("push-wandb"):
        push([str(tmp_path)])


ODD = "a:b;c,d#e?f'g (h) \u00e9*"


def test_names_that_wandb_does_not_take_are_sent_all_the_same(tmp_path, sent):
    first, other = (setting(tmp_path, task=task) for task in (ODD, ODD.replace(":", ";")))
    _, runs = apart(sent([first, other]))
    assert len({run["id"] for run in runs}) == 2
    assert all(run["numbers"]["score"] == 50 for run in runs)
    assert run_id(first) == run_id(Record(first.path, first.runs))


def test_ids_and_names_that_wandb_takes_stay(tmp_path):
    assert safe_id("tiny-niah é [x]") == "tiny-niah é [x]"
    assert safe_id("x" * 200) == "x" * 128
    assert len(safe_id("a:" * 100)) <= 128
    assert artifact_name("niah-abcd1234") == "niah-abcd1234"
    assert not set(artifact_name(f"{ODD}-abcd1234")) & set(":;,#?'() *")


@pytest.mark.parametrize("project", ["a:b", "a#b", "a?b", "a%b"])
def test_a_project_that_wandb_does_not_take_is_refused_before_the_run(project):
    with refused("logger.project", value=project):
        WandbLogger(project, None, None, (), None, "offline", "wandb").check()
