"""A method from outside the tree: a package and a YAML, which work like the built-in ones."""

import json
import sys

import pytest

from compresskv.methods import named_method
from evals.compose import composed, job, job_from
from evals.conformance import check
from tests.support.command import folders, run
from tests.support.own_method import YAML, install, write_package
from tests.support.refusals import refused


@pytest.fixture
def conf(tmp_path):
    yield write_package(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside_method"]:
        del sys.modules[name]


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Python finds the package."""
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def command(conf, tmp_path, checkpoint):
    """The start of a command line."""
    model = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    grid = ["eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=4", f"paths.results={tmp_path / 'out'}"]
    return [f"--config-dir={conf}", *model, *grid]


def kept(folder):
    """What each layer keeps in a folder's first sample."""
    return json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["kept"]


def test_it_runs_in_a_sweep_and_composes_with_ours(command, found, tmp_path):
    settings = ["method=strided_halves,snapkv", "method/allocator=halves,uniform", "budget=64"]
    done = run("-m", *command, *settings)
    assert done.returncode == 0, done.stderr
    by_method = {folder.parent.name: kept(folder) for folder in folders(tmp_path)}
    assert by_method == {
        "strided_halves": [60, 64, 68],
        "strided_halves-uniform": [64, 64, 64],
        "snapkv-parts": [60, 64, 68],
        "snapkv": [64, 64, 64],
    }


@pytest.mark.parametrize(
    ("override", "field", "names"),
    [
        ("method.scorer.strid=2", "method.scorer.strid", "method.scorer.stride?"),
        ("+method.scorer.strat=last", "method.scorer.strat", "method.scorer.start?"),
        ("method.scorer.stride=0", "method.scorer.stride", "1"),
        ("+method.scorer.start=middle", "method.scorer.start", "first, last"),
        ("method.allocator.given=few", "method.allocator.given", "0"),
        ("method=strided_halvs", "method", "strided_halves"),
        ("method/allocator=halvs", "method/allocator", "halves"),
    ],
)
def test_its_annotations_are_the_schema(conf, found, override, field, names):
    with refused(field, names=names):
        job_from(composed("method=strided_halves", override, config_dir=conf))


def test_a_package_that_python_does_not_find_is_a_sentence(conf):
    with refused("method.scorer._target_", value="outside_method.parts.scorer"):
        job("method=strided_halves", config_dir=conf)


def test_help_and_tab_completion_know_it(command, found):
    assert "strided_halves" in run(command[0], "--help").stdout
    for typed, expected in [
        ("method=strided", "method=strided_halves"),
        ("method=strided_halves method.scorer.str", "method.scorer.stride="),
    ]:
        line = {"COMP_LINE": f"python run.py {command[0]} {typed}"}
        assert expected in run(command[0], "-sc", "query=bash", env=line).stdout.split()


def test_a_file_that_is_called_as_one_of_ours_is_refused(conf):
    """Hydra would silently use the built-in one."""
    (conf / "method" / "snapkv.yaml").write_text(YAML)
    with refused("method", value="snapkv"):
        composed("method=snapkv", config_dir=conf)


def test_it_conforms(conf, found):
    result = check("strided_halves", "method.scorer.stride=5", budget=40, config_dir=conf)
    assert result.passed, str(result)


def test_an_installed_package_needs_no_folder_on_the_command_line(conf, found, tmp_path):
    install(tmp_path)
    assert composed("method=strided_halves")["method"]["allocator"]["given"] == 4
    method = named_method("strided_halves")
    assert method.scorer is not None
    assert dict(method.scorer.parameters) == {"stride": 3}
    done = run("-sc", "query=bash", env={"COMP_LINE": "python run.py method=str"})
    assert done.stdout.split() == ["method=streaming_llm", "method=strided_halves"]


def test_an_entry_point_that_names_no_folder_is_a_sentence(conf, found, tmp_path):
    install(tmp_path)
    (conf / "method" / "strided_halves.yaml").unlink()
    (tmp_path / "outside_method-1.0.dist-info" / "entry_points.txt").write_text(
        "[compresskv.conf]\nmine = outside_method.cnf\n"
    )
    with refused("compresskv.conf", value="outside_method.cnf"):
        composed("method=snapkv")
