"""What W&B gets, read back from the file of an offline run."""

import json
import struct

import pytest
import wandb

from evals.loggers.wandb import WandbLogger, run_id, samples
from evals.results.record import Record
from tests.results.trees import line, setting

BLOCK = 1 << 15


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """Sends records; gives what each file of an offline run holds: configuration, numbers, name, id, tags, group."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    def send(records, figures=()):
        WandbLogger("project", None, "offline", str(tmp_path / "wandb")).log(records, figures)
        wandb.teardown()  # its process has written everything
        return [read(path) for path in sorted((tmp_path / "wandb").rglob("run-*.wandb"))]

    return send


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

    content = {"numbers": {}}
    for data in entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run") and "config" not in content:
            content |= {"id": record.run.run_id, "tags": list(record.run.tags), "group": record.run.run_group}
            content["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            content["numbers"][key] = json.loads(item.value_json)
    return content


def test_a_setting_is_a_run_with_what_people_filter_by(tmp_path, sent):
    fields = {"backend": "sdpa", "model_fingerprint": "abc"}
    (run,) = sent([setting(tmp_path, [0.0, 100.0, 50.0], **fields)])
    assert run["numbers"]["score"] == 50
    assert run["numbers"]["n"] == 3
    assert run["numbers"]["score_words"] == 25
    assert run["numbers"]["score_low"] <= 50 <= run["numbers"]["score_high"]
    assert run["config"]["setting"]["task"] == "needle"
    assert run["config"]["dtype"] == "float32"
    assert run["config"]["backend"] == "sdpa"
    assert run["config"]["model_fingerprint"] == "abc"
    assert run["config"]["environment"]["versions"]["torch"]
    assert {"tiny", "niah", "needle", "corrected", "snapkv"} == set(run["tags"])
    assert run["group"] == "tiny niah"


def test_a_setting_keeps_its_run_and_others_have_their_own(tmp_path):
    first, other = setting(tmp_path, digest="aaaa1111"), setting(tmp_path, digest="bbbb2222")
    again = Record(first.path, first.runs)
    assert run_id(first) == run_id(again) != run_id(other)


def test_the_table_of_samples(tmp_path):
    columns, rows = samples(setting(tmp_path, [0.0, 100.0]))
    assert {"id", "prediction", "kept", "score", "score_words"} <= set(columns)
    assert len(rows) == 2
    assert rows[0][columns.index("kept")] == "[64, 64]"
    assert rows[1][columns.index("prediction")] == line("1")["prediction"]
