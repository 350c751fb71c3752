"""User settings for SLURM stay within their line of the job's script and never become shell commands."""

from pathlib import Path
from typing import Any

import pytest

from compresskv.checking import checked
from evals.launch.slurm.config import SlurmConfig
from tests.support.refusals import refused

SETTINGS: dict[str, Any] = {
    "partition": "gpu",
    "account": "lab",
    "qos": "high",
    "gres": "gpu:1",
    "time": 240,
    "memory": "32G",
    "cpus": 4,
    "parallel": 32,
    "groups_per_task": 1,
    "setup": ["module load cuda"],
    "sbatch": {"constraint": "a100"},
    "requeues": 10,
    "notice": 90,
    "poll": 10,
    "detach": False,
    "folder": "results/slurm",
}

BREAKS = ["\n", "\r", "\v", "\f", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\udcff"]


def script(**changes: Any) -> list[str]:
    """The lines of the job's script with these settings."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    config = checked("hydra.launcher", SlurmConfig, {**SETTINGS, **changes})
    given = config.submitit(Path("/work"))
    return slurm._make_sbatch_string("true", config.folder, **given).split("\n")


def of(name: str, text: str) -> dict[str, Any]:
    """`text` inside a value of the setting's type."""
    value = SETTINGS[name]
    return {name: [text] if isinstance(value, list) else {"constraint": text} if isinstance(value, dict) else text}


TEXTS = [name for name, value in SETTINGS.items() if isinstance(value, (str, list, dict))]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("character", BREAKS)
def test_what_would_begin_another_line_is_refused(name, character):
    inside = {"setup": "setup[0]", "sbatch": "sbatch.constraint"}
    with refused(f"hydra.launcher.{inside.get(name, name)}"):
        script(**of(name, f"x{character}touch owned"))


@pytest.mark.parametrize("option", ["x\ntouch owned", "a b", "", "-x", "x=1 --y", "#", 5, None, "é"])
def test_an_option_of_sbatch_is_a_name(option):
    with refused("hydra.launcher.sbatch"):
        script(sbatch={option: "x"})


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in ("setup", "folder")])
@pytest.mark.parametrize("text", ["a b", "'; touch owned; '", '"', "$(touch owned)", "`x`", "#", "a\\", "é", "--x=1"])
def test_a_value_stays_in_its_line_and_is_quoted(name, text):
    ours, usual = script(**of(name, text)), script()
    changed = [line for line, before in zip(ours, usual, strict=True) if line != before]
    assert len(changed) == 1
    assert changed[0].startswith("#SBATCH --")


@pytest.mark.parametrize("folder", ["logs/%j", "a\\b"])
def test_a_folder_that_slurm_reads_as_a_pattern_is_refused(folder):
    with refused("hydra.launcher.folder"):
        script(folder=folder)


def test_setup_lines_are_shell_lines():
    assert "module load cuda\t# 12" in script(setup=["module load cuda\t# 12"])
