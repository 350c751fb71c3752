"""A sweep with fidelity=true: what its lines, summaries and tables say."""

from statistics import fmean
from types import SimpleNamespace

import pytest

from evals.cli import main
from evals.results.means import values_of
from evals.results.names import names
from evals.results.record import records
from evals.running.methods import refuse_beyond_window
from evals.running.sweep import run
from tests.support.jobs import job
from tests.support.refusals import refused


@pytest.fixture
def overrides(tiny):
    return ["eval.lengths=[200]", "eval.depths=2", "eval.max_new_tokens=6", *tiny]


def test_lines_summaries_and_tables(on_tiny_model, overrides, tmp_path, capsys):
    settings = [("full", 64), ("snapkv", 32), ("snapkv", 250)]
    run([job(*overrides, "fidelity=true", f"method={method}", f"budget={budget}") for method, budget in settings])
    assert "fidelity to the full cache" in capsys.readouterr().out
    summaries = {(record.method, record.budget): record for record in records(tmp_path / "out")}
    for record in summaries.values():
        assert record.state == "complete"
        assert record.summary["fidelity"]["kl"]["n"] == 2
        assert record.summary["fidelity"]["reference_nll"]["mean"] > 0
        for line in record.covered:
            assert fmean(line["kl_per_token"]) == pytest.approx(line["kl"], abs=1e-4)
    assert summaries["full", None].summary["fidelity"]["kl"]["mean"] == 0
    assert summaries["snapkv", 250].summary["fidelity"]["kl"]["mean"] < 1e-6
    assert summaries["snapkv", 32].summary["fidelity"]["kl"]["mean"] > 1e-4
    assert main(["results", "verify", "--results", str(tmp_path / "out")]) == 0
    assert main(["results", "compare", "--metric", "kl", "--results", str(tmp_path / "out")]) == 0
    assert "SnapKV 32" in capsys.readouterr().out


def test_along_no_or_more_tokens_than_the_answer_has(on_tiny_model, overrides, tmp_path):
    """The answers and scores are the same; lines of another length are in another folder, and never pair."""
    for along in ("fidelity=false", "fidelity=true", "fidelity.tokens=9", "fidelity.tokens=4"):
        run([job(*overrides, along, f"method={method}", "budget=32") for method in ("snapkv", "full")])
    found = {}
    for record in records(tmp_path / "out"):
        along = record.config["fidelity"]
        found[record.method, along if isinstance(along, bool) else along["tokens"]] = record
    assert len(found) == 8
    for id, line in found["snapkv", True].samples.items():
        without, longer, shorter = (found["snapkv", tokens].samples[id] for tokens in (False, 9, 4))
        assert {"kl", "agreement", "reference_nll", "kl_per_token"} == set(line) - set(without)
        for name in ("prediction", "score", "kept", "prompt_sha256", "prompt_tail"):
            assert line[name] == without[name] == longer[name]
        assert (len(longer["kl_per_token"]), len(shorter["kl_per_token"])) == (8, 3)
        assert longer["kl_per_token"][:5] == pytest.approx(line["kl_per_token"], abs=1e-4)
        assert longer["kl_per_token"][:3] == pytest.approx(shorter["kl_per_token"], abs=1e-4)
    values = {key: values_of(record, "kl") for key, record in found.items()}
    assert values["snapkv", 9].keys() == values["full", 9].keys()
    assert not values["snapkv", 9].keys() & values["full", 4].keys()
    assert values_of(found["snapkv", 9], "score").keys() == values_of(found["full", 4], "score").keys()
    assert len({str(name) for name in names(list(found.values()))}) == 8


def test_both_forms_of_the_setting():
    assert [job(text).fidelity for text in ("fidelity=false", "fidelity.tokens=null")] == [None, None]
    assert [job(text).fidelity for text in ("fidelity=true", "fidelity.tokens=answer")] == ["answer", "answer"]
    assert job().config["fidelity"] is False
    assert job("fidelity.tokens=answer").config["fidelity"] is True
    assert job("fidelity.tokens=512").config["fidelity"] == {"tokens": 512}
    assert job("experiment=decoding", "budget=64").fidelity == 512
    assert job("experiment=ruler_board", "budget=64", "fidelity.tokens=7").fidelity == 7
    for text, field in (("fidelity=1", "fidelity"), ("fidelity.tokens=1", "fidelity.tokens")):
        with refused(field, value=1):
            job(text)
    with refused("fidelity.tokens", names="fidelity=true"):
        job("fidelity=true", "fidelity.tokens=512")


def test_tokens_beyond_the_window_are_refused():
    model = SimpleNamespace(window=300, name="small")
    for text in ("fidelity=true", "fidelity.tokens=100"):
        refuse_beyond_window(model, job(text), 200)
    with refused("fidelity.tokens", value=101):
        refuse_beyond_window(model, job("fidelity.tokens=101"), 200)


def test_a_setting_beyond_the_window_does_not_run(overrides, tmp_path):
    """Beside one that fits, no prompt of it is tried."""
    with refused(None):
        run(
            [
                job(*overrides, "model.window=300", "method=snapkv", "budget=32", f)
                for f in ("fidelity.tokens=200", "fidelity=true")
            ]
        )
    done = [record for record in records(tmp_path / "out") if record.samples or record.failures]
    assert [record.state for record in done] == ["complete"]


def test_an_evaluation_without_samples_is_refused():
    with refused("fidelity", value=True):
        job("eval=efficiency", "fidelity=true")
