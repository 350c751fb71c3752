"""`+prefetch=true` fetches models and data, and runs nothing."""

from compresskv.model_config import ModelConfig
from compresskv.models import fetch, load
from evals.compose import take_action
from tests.support.command import run
from tests.support.refusals import refused
from tests.support.tiny import save


def hub(folder, monkeypatch, commit="a" * 40):
    """A hub's cache that holds org/tiny; nothing else can be had."""
    home = folder / "models--org--tiny"
    save(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name, value in {"HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)
    return home / "snapshots" / commit


def test_what_is_fetched_is_what_is_loaded(tmp_path, monkeypatch):
    there = hub(tmp_path, monkeypatch)
    config = ModelConfig("tiny", path="org/tiny", device="cpu", dtype="float32", chat_template=False)
    assert fetch(config) == there
    assert load(config).model.config.num_hidden_layers > 0
    with refused("model.path"):
        fetch(ModelConfig("other", path="org/other"))


def test_a_folder_needs_no_download(tmp_path):
    save(tmp_path / "model")
    assert fetch(ModelConfig("tiny", path=str(tmp_path / "model"))) == tmp_path / "model"


def test_the_action_is_taken_out_of_the_configuration():
    config = {"prefetch": True, "budget": 4}
    assert take_action(config, {"plan": False}) == "prefetch"
    assert config == {"budget": 4}
    assert take_action({"budget": 4}) == "run"
    with refused("plan"):
        take_action({"plan": True, "prefetch": True})
    with refused("prefetch", value="yes"):
        take_action({"prefetch": "yes"})


def test_a_sweep_is_fetched_and_not_run(tiny, checkpoint, tmp_path):
    done = run("-m", "method=snapkv,full", "budget=64", "+prefetch=true", *tiny)
    assert done.returncode == 0, done.stderr
    assert str(checkpoint) in done.stdout.replace("\n", "")
    assert not (tmp_path / "out").exists()
