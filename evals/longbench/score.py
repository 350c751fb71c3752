"""Score prediction files in LongBench's official format: `python -m evals.longbench.score DIR [--json]`.

DIR holds one TASK.jsonl a task, one JSON object a line with `pred`, `answers`, `all_classes` and `length`, as the
official pred.py writes them. Prints a table, or with --json one object {task: score} as in the official result.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from compresskv.errors import UserError, located
from compresskv.inputs import read_once
from evals.console import outputs_take_any_text
from evals.longbench.aggregate import TaskScore, averages_of, interval, task_score
from evals.longbench.metrics import score_sample
from evals.longbench.official import check_unordered
from evals.longbench.records import answers_field, classes_field, data_files, length_field, read_jsonl, text_field
from evals.longbench.tasks import ALL, Task, get_task
from evals.tables import text


def score_folder(folder: Path) -> dict[str, TaskScore]:
    """Scores of every TASK.jsonl in a folder, in the official order of tasks; `UserError` names file and line."""
    if not folder.is_dir():
        raise UserError("DIR", "give one that holds TASK.jsonl prediction files", value=folder, why="not a directory")
    files = {path.stem: path for path in data_files(folder)}
    if not files:
        raise UserError(
            "DIR", "give one that holds TASK.jsonl prediction files", value=folder, why="it holds no .jsonl file"
        )
    for name, path in files.items():
        if name not in ALL:
            raise UserError(
                None, f"choose file names from {', '.join(ALL)}", value=path, why=f"{name} is not a LongBench task"
            )
    return {name: score_file(files[name], get_task(name)) for name in ALL if name in files}


def score_file(path: Path, task: Task) -> TaskScore:
    """The score of one prediction file; `UserError` names file and line."""
    needs_classes = task.metric == "classification"
    places, predictions, all_answers, lengths = [], [], [], []
    classes = None
    for place, record in read_jsonl(path, read_once(path, None)):
        places.append(place)
        predictions.append(text_field(place, record, "pred"))
        all_answers.append(answers_field(place, record))
        lengths.append(length_field(place, record) if "length" in record else None)
        classes = classes_field(place, record, needed=needs_classes)  # the last line's count for all, as in eval.py
    samples = []
    for place, prediction, answers in zip(places, predictions, all_answers, strict=True):
        with located(place):
            samples.append(score_sample(task, prediction, answers, classes))
    known = [length for length in lengths if length is not None]
    check = check_unordered(task.name, zip(all_answers, known, strict=True)) if len(known) == len(lengths) else None
    return task_score(task, samples, check)


def print_table(scores: Mapping[str, TaskScore]) -> None:
    """Task scores and averages with 95% bootstrap intervals on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "category"):
        table.add_column(heading, no_wrap=True)
    for heading in ("n", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("95% CI", justify="right", no_wrap=True)
    table.add_column("", style="yellow")
    for name, score in scores.items():
        row = [name, score.task.category, str(len(score.samples)), f"{score.score:.2f}", _range(interval(score))]
        table.add_row(*row, score.problem, end_section=name == list(scores)[-1])
    for average, cell in averages_of(scores).items():
        whole = sum(not scores[task].problem for task in cell.strata)
        problem = f"incomplete: {whole} of {cell.tasks} tasks" if cell.partial else ""
        numbers = ["-", "-"] if problem else [f"{cell.mean:.2f}", _range(cell.interval)]
        table.add_row(average, "", str(cell.n), *numbers, problem)
    Console(width=None if sys.stdout.isatty() else 120).print(table)  # a file or pipe has no width of its own


def _range(bounds: tuple[float, float] | None) -> str:
    return text.bounds(bounds, 3, "{} - {}") or "-"


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit status is 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m evals.longbench.score", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="directory of TASK.jsonl prediction files")
    parser.add_argument("--json", action="store_true", help="print one JSON object {task: score}")
    options = parser.parse_args(arguments)
    try:
        scores = score_folder(options.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({name: score.score for name, score in scores.items()}))
    else:
        print_table(scores)
    for name, score in scores.items():
        if score.overflow:
            print(
                f"{name}: {score.overflow} samples hold a text pair that may be too deep for the recursive ROUGE-L of "
                f"the official evaluation; with such pairs at 0, as there, the score is {score.official:.2f}.",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    outputs_take_any_text()
    sys.exit(main())
