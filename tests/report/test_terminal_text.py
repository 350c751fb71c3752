"""Names and predictions are shown literally in the terminal, never as markup or control sequences."""

import json

import pytest
from rich.console import Console

from evals.cli import main
from evals.console import plain, visible
from evals.longbench.tasks import ENGLISH
from evals.progress import Progress
from evals.report import terminal
from evals.running import outcome
from evals.running.outcome import Entry
from tests.support.trees import line, setting

HOSTILE = "m[bold]x[/bold] [d9676eeb] :warning: \x1b[31m\x9b2J \u202e"
SEEN = "m[bold]x[/bold] [d9676eeb] :warning: ␛[31m<U+009B>2J <U+202E>"


@pytest.fixture
def two_settings(tmp_path):
    """Two settings of a model with this name, which differ only in their hashes."""
    records = []
    for place, digest in enumerate(("d9676eeb", "01234567")):
        lines = [line(str(n), 50.0 + place, 64, kl=0.5) for n in range(3)]
        records.append(
            setting(tmp_path, lines, "snapkv", 64, model=HOSTILE, eval="jsonl", task="[red]mine", digest=digest)
        )
    return records


@pytest.mark.parametrize("text", ["plain", "[bold]", "[/]", "a\\", ":smile:", "line\nbreak\ttab", "ﷺ é 中"])
def test_ordinary_text_is_as_it_was(text):
    assert visible(text) == text
    assert plain(text).plain == text


def test_control_characters_are_pictures():
    assert visible(HOSTILE) == SEEN
    assert visible("\x00\x7f\ud800\r") == "␀<U+007F><U+D800>␍"


def test_tables_at_the_end_of_a_run(two_settings, capsys):
    terminal.show(two_settings)
    shown = capsys.readouterr().out
    assert SEEN in shown
    assert "[d9676eeb]" in shown.replace(SEEN, "")
    assert "fidelity" in shown
    assert not set(shown) & {"\x1b", "\x9b", "\u202e"}


def test_lengths_are_columns_in_order_of_their_size(tmp_path, capsys):
    lines = [line(f"L{length}", 50, 64, length=length) for length in (1000, 500, 12000)]
    terminal.show([setting(tmp_path, lines)])
    [head] = [row for row in capsys.readouterr().out.splitlines() if "setting" in row]
    assert [cell.strip() for cell in head.split("┃")[4:7]] == ["500", "1K", "12K"]


def test_settings_of_different_tasks_share_a_table_that_is_turned_if_it_is_wide(tmp_path, capsys):
    records = []
    for method, tasks in (("snapkv", ENGLISH[:6]), ("cake", ENGLISH[6:])):
        lines = [line("0", 40, 64, answers=["a"], length=3)]
        records += [setting(tmp_path, lines, method, model=HOSTILE, eval="longbench", task=task) for task in tasks]
    terminal.show(records)
    shown = capsys.readouterr().out
    assert SEEN in shown
    rows = {row.split("│")[1].strip(): row.split("│")[2:-1] for row in shown.splitlines() if row.startswith("│")}
    assert [cell.strip() for cell in rows["Qasper"]] == ["1", "40.00 †0 of 200", ""]
    assert [cell.strip() for cell in rows["TREC"]] == ["1", "", "40.00 †0 of 200"]
    assert [cell.strip() for cell in rows["few-shot"]] == ["3", "", "40.00 †0 of 600"]
    assert "†0 of 3750, 6 of 16 tasks" in shown


def test_outcomes(capsys):
    outcome.show(
        [
            Entry(HOSTILE, "niah", "needle", "snapkv [d9676eeb]", "ran", "3 samples"),
            Entry("tiny", "niah", "needle", "cake", "ran", "n"),
        ],
        None,
    )
    shown = capsys.readouterr().out
    assert SEEN in shown
    assert "snapkv [d9676eeb]" in shown


@pytest.mark.parametrize("command", ["list", "verify", "compare", "show"])
def test_the_results_command(two_settings, capsys, command):
    results = str(two_settings[0].runs.parent)
    broken = two_settings[0].path / "samples.jsonl"
    if command == "verify":
        broken.write_bytes(broken.read_bytes().replace(b'"score": 50', b'"score": 51'))
    main(["results", command, "--results", results])
    said = capsys.readouterr()
    assert not set(said.out + said.err) & {"\x1b", "\x9b"}
    if command == "show":
        assert HOSTILE in {each["model"] for each in json.loads(said.out)}
    else:
        assert SEEN in " ".join((said.out + said.err).split())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal, tmp_path):
    with (tmp_path / "out").open("w+") as file:
        progress = Progress(Console(file=file, width=200, force_terminal=terminal, color_system=None))
        with progress.track("tiny[bold]x [d9676eeb]", [1, 2]) as steps:
            assert list(steps) == [1, 2]
        file.seek(0)
        assert "tiny[bold]x [d9676eeb]" in file.read()
