"""`export.kept=true`: a file per sample and setting, whatever the sample is called, and none silently absent."""

import json

import pytest
import torch

from compresskv.compressed_cache import compressed
from compresskv.detokenise import text_of
from compresskv.installed import generate_argument
from compresskv.kept_tokens import prompt_sha256, read
from evals.results.record import records
from evals.running import batches
from evals.running.export import path_of
from tests.support.command import run
from tests.support.jobs import job
from tests.support.refusals import refused

IDS = ["..", "../../up", "a/b", "ü" * 100, "A", "plain"]
BOOK = "The cat sat on the mat. " * 20


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"id": id, "context": f"{id} {BOOK}", "question": "Who?", "answers": ["x"]} for id in IDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(data, tiny):
    settings = ["eval=jsonl", f"eval.data={data}", "eval.metric=exact_match", "eval.max_new_tokens=6"]
    return [*settings, *tiny, "budget=40"]


def files(tmp_path):
    """Every file of kept tokens: its metadata and positions, since safetensors does not order its header."""
    found = {path: read(path) for path in tmp_path.rglob("*.safetensors")}
    return {
        path: (file.metadata, [[head.tolist() for head in layer] for layer in file.kept])
        for path, file in found.items()
    }


@pytest.mark.parametrize("when", ["prompt", "context"])
def test_what_is_written_gives_the_answers_of_the_lines(command, tmp_path, tiny_model, when):
    done = run("-m", "method=full,snapkv,pyramidkv", "export.kept=true", f"eviction.when={when}", *command)
    assert done.returncode == 0, done.stderr
    assert "kept tokens, at most 0." in done.stderr
    config = job("method=snapkv", f"eviction.when={when}", *command)
    model = tiny_model
    (task,) = config.eval.make_tasks(model, config.protocol)
    found = {record.method: record for record in records(tmp_path / "out")}
    assert not any(record.problems for record in found.values())
    assert not (found["full"].path / "kept").exists()
    for method in ("snapkv", "pyramidkv"):
        lines, folder = found[method].samples, found[method].path
        assert len(list((folder / "kept").iterdir())) == len(lines) == len(IDS)
        for id, line in lines.items():
            sample, path = task.sample(id), path_of(folder, id)
            assert path.parent == folder / "kept"
            about = read(path).metadata
            assert about["sample"] == id
            assert about["prompt_sha256"] == line["prompt_sha256"] == prompt_sha256(sample.ids)
            assert about["setting"] == found[method].name
            assert about["when"] == when
            length = sample.context if when == "context" else sample.ids.numel()
            assert read(path).length == length
            with compressed(model.model, kept=path) as cache:
                if when == "context":
                    model.model(sample.ids[None, :length], past_key_values=cache)
                given = {"attention_mask": torch.ones(1, sample.ids.numel(), dtype=torch.long), "pad_token_id": 0}
                out = model.model.generate(
                    sample.ids[None], max_new_tokens=6, do_sample=False, **given, **{generate_argument(): cache}
                )
            assert text_of(out[0, sample.ids.numel() :].tolist(), model.tokenizer, False) == line["prediction"]
            kept = [[len(head) for head in layer] for layer in cache.kept]
            assert [heads[0] if len(set(heads)) == 1 else heads for heads in kept] == line["kept"]


def test_a_file_that_is_missing_is_written_again_and_nothing_else_changes(command, tmp_path):
    swept = ["-m", "method=snapkv,tova", *command]
    assert run(*swept).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("samples.jsonl")}
    assert not files(tmp_path)
    assert run(*swept, "export.kept=true").returncode == 0
    written = files(tmp_path)
    assert len(written) == 2 * len(IDS)
    lost = next(iter(written))
    lost.unlink()
    assert run(*swept, "export.kept=true", "+plan=true").returncode == 0
    assert len(files(tmp_path)) == len(written) - 1
    assert run(*swept, "export.kept=true").returncode == 0
    assert files(tmp_path) == written
    assert {path: path.read_bytes() for path in tmp_path.rglob("samples.jsonl")} == before


def test_one_of_two_equal_settings_exports(command, tmp_path):
    assert run("-m", "method=snapkv", "export.kept=false,true", *command).returncode == 0
    assert len(files(tmp_path)) == len(IDS)


def test_a_setting_that_keeps_other_numbers_fails_alone(command, tmp_path, monkeypatch):
    """As on another GPU; the other settings of its batch write their lines and files."""
    assert run("method=snapkv", *command).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("samples.jsonl")}
    made = batches.sample_line
    monkeypatch.setattr(batches, "sample_line", lambda *arguments: made(*arguments) | {"kept": [1, 1, 1, 1]})
    assert run("-m", "method=snapkv,knorm", "export.kept=true", *command).returncode != 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path.parents[1].name for path in tmp_path.rglob("summary.json")} == {"snapkv", "knorm"}
    assert len([path for path in files(tmp_path) if "knorm" in path.parts]) == len(IDS)


def test_a_file_that_cannot_be_written_again_fails_the_setting(command, tmp_path, monkeypatch):
    assert run("method=snapkv", *command).returncode == 0
    monkeypatch.setattr(batches, "generate", lambda *rest, **options: (_ for _ in ()).throw(MemoryError()))
    assert run("method=snapkv", "export.kept=true", *command).returncode != 0


@pytest.mark.parametrize(
    "overrides", [("eval=efficiency",), ("eval=calibrate",), ("eviction.when=prompt+decode",), ("eval=head_masking",)]
)
def test_what_keeps_no_set_of_tokens_is_refused(overrides):
    with refused("export.kept", value=True):
        job("export.kept=true", *overrides)
    assert job("export.kept=false", *overrides)
