"""LongBench from the command line on small records: tables, limits and resuming."""

import json

import pytest

from tests.support.command import content, folders, run
from tests.support.equality import assert_sharing_changes_nothing

TASKS = ["qasper", "lcc"]


@pytest.fixture
def data(tmp_path, records):
    """A directory of task files with three rows each; the first row is long enough to be cut."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in TASKS:
        record = records[name]
        rows = [
            {
                "input": record.input,
                "context": record.context * (400 if row == 0 else row),
                "answers": list(record.answers),
                "all_classes": list(record.all_classes) if record.all_classes else None,
                "length": record.length,
                "_lb_index": row + 3,
            }
            for row in range(3)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def command(checkpoint, tmp_path, data):
    return [
        "eval=longbench",
        f"eval.data={data}",
        "eval.tasks=[qasper,lcc]",
        "eval.max_length=600",
        f"model.path={checkpoint}",
        "model.dtype=float32",
        "model.device=cpu",
        f"paths.results={tmp_path / 'out'}",
    ]


def test_a_run_and_its_table(command, tmp_path):
    done = run("method=snapkv", "budget=64", "eval.limit=2", *command)
    assert done.returncode == 0, done.stderr
    assert "of 3750, 2 of 16 tasks" in done.stdout
    assert "† partial" in done.stdout
    assert len(folders(tmp_path)) == 2
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    kept = []
    for samples, *_ in content(tmp_path).values():
        kept += [sample["realised_budget"] for sample in samples.values()]
    assert rows[-1][0] == "SnapKV 64"
    assert rows[-1][-2:] == [f"{sum(kept) / 4:.1f}", "0.02"]
    lines = [json.loads(line) for line in (folders(tmp_path)[0] / "samples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["3", "4"]
    assert [line["truncated"] for line in lines] == [True, False]
    assert all(len(line["prompt_text_sha256"]) == 64 and line["new_tokens"] >= 1 for line in lines)
    assert run("method=snapkv", "budget=64", *command).returncode == 0
    assert [len(lines) for lines, *_ in content(tmp_path).values()] == [3, 3]


@pytest.mark.slow
def test_sharing_changes_nothing_for_any_method(command, tmp_path, calibration_file, monkeypatch):
    overrides = [*command[:-1], "eval.tasks=[qasper,lcc]", "eval.limit=2", f"calibration={calibration_file}"]
    assert_sharing_changes_nothing(overrides, tmp_path, monkeypatch)
