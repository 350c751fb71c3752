"""Check that a sweep leaves the same samples as separate runs of its settings."""

from pathlib import Path

from evals.compose import job_from
from evals.running import loading, outcome, sweep
from tests.support.command import ROOT, content
from tests.support.jobs import composed

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def assert_sharing_changes_nothing(overrides: list[str], tmp_path: Path, monkeypatch) -> None:
    """Run all methods at two budgets in one sweep, then each alone at one of them; assert equal lines and summaries."""
    monkeypatch.setattr(outcome, "show", raise_failures)  # makes no tables or figures
    configs = [composed(f"method={method}", *overrides) for method in METHODS]

    def made(config, budget: int, results: str):
        return job_from({**config, "budget": budget, "paths": {"results": str(tmp_path / results / "out")}})

    sweep.run([made(config, budget, "together") for config in configs for budget in (32, 96)])
    monkeypatch.setattr(loading._Last, "kept", True)  # a process keeps one model for all of its runs
    monkeypatch.setattr(loading._Last, "model", None)
    for place, config in enumerate(configs):
        sweep.run([made(config, (32, 96)[place % 2], "alone")])
    together, alone = (without_batches(content(tmp_path / results)) for results in ("together", "alone"))
    assert len(together) % (2 * len(METHODS) - 1) == 0  # the full cache runs once, without a budget
    assert len(alone) % len(METHODS) == 0
    assert alone.items() <= together.items()


def raise_failures(entries, logger) -> None:
    assert [entry for entry in entries if entry.state == "failed"] == []


def without_batches(found):
    for lines, _, _ in found.values():
        for line in lines.values():
            line.pop("batch")
            line.pop("checksum")  # it includes the batch
    return found
