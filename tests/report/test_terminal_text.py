"""What results and folders are called, and what models write, is text in the terminal: no markup, no commands."""

import json
from io import StringIO

import pytest
from rich.console import Console

from evals.console import plain, visible
from evals.longbench import table as longbench
from evals.niah.heatmap import panels
from evals.progress import Progress
from evals.report import terminal
from evals.results.__main__ import main
from evals.results.record import Record
from evals.running import outcome
from evals.running.outcome import Entry
from tests.report.page_trees import line, setting

HOSTILE = "m[bold]x[/bold] [d9676eeb] :warning: \x1b[31m\x9b2J \u202e"
SEEN = "m[bold]x[/bold] [d9676eeb] :warning: ␛[31m<U+009B>2J <U+202E>"


@pytest.fixture
def two_settings(tmp_path):
    """Two settings of a model of that name: their records differ by nothing but their hashes."""
    folders = []
    for place, digest in enumerate(("d9676eeb", "01234567")):
        lines = [line(str(n), 50.0 + place, 64, kl=0.5) for n in range(3)]
        folders.append(setting(tmp_path, lines, "snapkv", 64, HOSTILE, "jsonl", "[red]mine", digest=digest))
    return [Record(folder, tmp_path / "runs") for folder in folders]


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


def test_lengths_are_columns_in_order_of_their_size(tmp_path):
    lines = [line(f"L{length}", 50, 64, length=length) for length in (1000, 500, 12000)]
    record = Record(setting(tmp_path, lines, "snapkv", 64, "tiny", "niah", "needle"), tmp_path / "runs")
    table = terminal.score_table("t", {"snapkv 64": [record]}, lambda of_sample: str(of_sample["length"]))
    assert [column.header.plain for column in table.columns[3:6]] == ["500", "1000", "12000"]


def test_longbench_tables(tmp_path):
    lines = [line("0", 40, 64, answers=["a"], length=3)]
    record = Record(setting(tmp_path, lines, "snapkv", 64, "tiny", "longbench", "qasper"), tmp_path / "runs")
    console = Console(width=200, record=True, file=StringIO())
    for table in longbench.tables(HOSTILE, {"snapkv [d9676eeb]": [record]}):
        console.print(table)
    shown = console.export_text()
    assert SEEN in shown
    assert "snapkv [d9676eeb]" in shown


def test_longbench_settings_of_different_tasks_share_a_table(tmp_path):
    records = {}
    for method, task in (("snapkv", "qasper"), ("cake", "trec")):
        lines = [line("0", 40, 64, answers=["a"], length=3)]
        records[method] = [Record(setting(tmp_path, lines, method, 64, "tiny", "longbench", task), tmp_path / "runs")]
    [table] = longbench.tables("t", records)
    names, samples, snapkv, cake, _ = [list(column.cells) for column in table.columns]
    rows = dict(zip(names, zip(samples, snapkv, cake, strict=True), strict=True))
    assert rows["qasper"] == ("1", "40.00", "")
    assert rows["trec"] == ("1", "", "40.00")
    assert rows["single-doc QA"] == rows["few-shot"] == ("1", "–", "–")


def test_a_setting_of_two_trees_is_one_panel(tmp_path):
    of_setting = []
    for tree, length in (("first", 500), ("second", 1000)):
        lines = [line(f"L{length}", 50, 64, length=length, depth=0.0)]
        folder = setting(tmp_path / tree, lines, "snapkv", 64, "tiny", "niah", "needle")
        of_setting.append(Record(folder, tmp_path / tree / "runs"))
    [[(name, shown)]] = panels({"snapkv 64": of_setting})
    assert (name, [of_sample["length"] for of_sample in shown]) == ("snapkv 64", [500, 1000])


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
    main([command, "--results", results])
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
