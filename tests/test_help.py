"""`run.py --help` says what every setting means."""

from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import evals.compose  # noqa: F401  (registers the resolvers that the configuration uses)
from compresskv.folders import CONF
from evals.help import all_meanings, groups_help, leaves, settings_help
from tests.support.command import run

EVALUATIONS = sorted(path.stem for path in (CONF / "eval").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if not path.stem.startswith("_"))


def whole(*overrides: str):
    """The configuration that `--help` describes, Hydra's own part included."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


OTHERS = ["protocol=released logger=wandb hydra/launcher=slurm"]
GROUPS = [[f"{group}={name}" for name in names] for group, names in {"eval": EVALUATIONS, "model": MODELS}.items()]
CHOICES = list(zip_longest([f"method={name}" for name in METHODS], *GROUPS, OTHERS, fillvalue=""))


@pytest.mark.parametrize("choices", CHOICES)
def test_every_setting_has_a_meaning(choices):
    config = whole(*" ".join(choices).split())
    meanings = all_meanings(config)
    assert [name for name, _ in leaves(config) if not meanings.get(name)] == []


def test_the_meaning_is_that_of_the_chosen_file():
    assert all_meanings(whole("eval=jsonl"))["eval.max_new_tokens"] == "for records without it"
    assert all_meanings(whole("eval=head_masking"))["eval.max_new_tokens"] == "longest answer, in tokens"


def test_values_are_those_of_the_command_line():
    config = whole("method=cake", "method.scorer.gamma=7", "eval.depths=[0,50]", "memory=1")
    values = dict(leaves(config))
    assert values["method.scorer.gamma"] == "7"
    assert values["eval.depths"] == "[0,50]"
    assert values["memory"] == "1"
    assert values["prefill_chunk"] == "null"
    assert values["fidelity.tokens"] == "null"
    assert not any("_target_" in name or "_convert_" in name for name in values)
    assert [name for name in values if name.startswith("hydra")] == ["hydra.launcher.devices"]


def test_groups_are_what_can_be_chosen():
    groups = dict(line.split(": ") for line in groups_help(whole()).splitlines())
    assert groups["model"].split(", ") == MODELS
    assert groups["hydra/launcher"] == "shared_prefill, slurm"
    assert [group for group in groups if group.startswith("hydra")] == ["hydra/launcher"]
    assert {"method/allocator", "experiment", "size"} <= groups.keys()


def test_dollars_survive_hydras_template():
    config = whole()
    OmegaConf.update(config, "eval.question", "What costs $5?")
    assert "What costs $$5?" in settings_help(config)


def test_the_command_prints_groups_and_settings():
    printed = run("--help", "method=cake").stdout
    assert "method/allocator: adacompresskv" in printed
    assert "method.scorer.gamma=200.0" in printed
    assert "weight of the attention's variance over the window" in printed
