"""Score prediction files in LongBench's official format: `python -m evals score DIR [--json]`.

DIR has a TASK.jsonl file per task, with one JSON object per line (`pred`, `answers`, `all_classes`, `length`), as
written by the official pred.py. Prints a table, or with --json one object {task: score} like the official result.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compresskv.errors import UserError, located
from compresskv.inputs import read_once
from evals.json_lines import Answers, Classes, Count, checked_record, read_jsonl
from evals.longbench.aggregate import TaskScore, averages_of, interval, task_score
from evals.longbench.official import check_unordered
from evals.longbench.records import data_files
from evals.longbench.scoring import score_sample
from evals.longbench.tasks import ALL, Task, get_task
from evals.tables import text
from evals.tables.printed import show_texts
from evals.tables.table import Texts


def score_folder(folder: Path) -> dict[str, TaskScore]:
    """Score every TASK.jsonl in a folder, in the official order. Raises `UserError` with file and line."""
    if not folder.is_dir():
        raise UserError("DIR", "give one with TASK.jsonl prediction files", value=folder, why="not a directory")
    files = {path.stem: path for path in data_files(folder)}
    if not files:
        raise UserError("DIR", "give one with TASK.jsonl prediction files", value=folder, why="it has no .jsonl file")
    for name, path in files.items():
        if name not in ALL:
            raise UserError(
                None, f"choose file names from {', '.join(ALL)}", value=path, why=f"{name} is not a LongBench task"
            )
    return {name: score_file(files[name], get_task(name)) for name in ALL if name in files}


@dataclass(frozen=True)
class Prediction:
    """One line of a prediction file."""

    pred: str
    answers: Answers
    all_classes: Classes = None
    length: Count | None = None


def score_file(path: Path, task: Task) -> TaskScore:
    """Score one prediction file. Raises `UserError` with file and line."""
    given: dict[str, Prediction] = {}
    for place, record in read_jsonl(path, read_once(path, None)):
        given[place] = checked_record(place, Prediction, record, needs_classes=task.metric == "classification")
    *_, last = given.values()
    samples = []
    for place, line in given.items():
        with located(place):  # as in eval.py, all lines use the classes of the last
            samples.append(score_sample(task, line.pred, line.answers, last.all_classes))
    known = [(line.answers, line.length) for line in given.values() if line.length is not None]
    return task_score(task, samples, check_unordered(task.name, known) if len(known) == len(given) else None)


def print_table(scores: Mapping[str, TaskScore]) -> None:
    """Print task scores and averages with 95 % bootstrap intervals."""
    body = []
    for name, score in scores.items():
        numbers = [str(len(score.samples)), f"{score.score:.2f}", _range(interval(score))]
        body.append([name, score.task.category, *numbers, score.problem])
    for average, cell in averages_of(scores).items():
        whole = sum(not scores[task].problem for task in cell.strata)
        problem = f"incomplete: {whole} of {cell.tasks} tasks" if cell.partial else ""
        numbers = [text.NONE, text.NONE] if problem else [text.mean(cell), _range(cell.interval)]
        body.append([average, "", str(cell.n), *numbers, problem])
    show_texts(Texts("LongBench", ["task", "category", "n", "score", "95 % interval", ""], body))


def _range(bounds: tuple[float, float] | None) -> str:
    return text.bounds(bounds, 3, "{} – {}") or text.NONE


def main(arguments: list[str] | None = None) -> int:
    """Score a folder, print the scores and return the exit code. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="python -m evals score", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="directory of TASK.jsonl prediction files")
    parser.add_argument("--json", action="store_true", help="print one JSON object {task: score}")
    options = parser.parse_args(arguments)
    scores = score_folder(options.folder)
    if options.json:
        print(json.dumps({name: score.score for name, score in scores.items()}))
    else:
        print_table(scores)
    for name, score in scores.items():
        if score.overflow:
            print(
                f"{name}: {score.overflow} samples have a text pair that may be too deep for the recursive ROUGE-L of "
                f"the official evaluation, which scores it 0; with such pairs at 0, the score is {score.official:.2f}.",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    from evals.cli import start

    start("score")
