"""Run lm-eval's tasks with a compressed cache: `python -m evals lm-eval --tasks <task> method=snapkv budget=256`."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

from compresskv.budget import written
from compresskv.errors import UserError
from compresskv.methods import refuse_shared
from evals.compose import job
from evals.job import Job

TAKEN = ("model", "method", "budget", "calibration", "prefill_chunk", "observation", "protocol")
"""Settings of `run.py` that apply here. Tasks, lengths and limits are options of lm-eval."""


PASSED_ON = ("limit", "num_fewshot", "apply_chat_template", "gen_kwargs", "log_samples")
"""Options that are passed to lm-eval unchanged."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lm-eval's tasks with one method at one budget, print its table, and write its JSON to --output_path.

    Raises `UserError`.
    """
    options = parsed(arguments)
    chosen = setting(options.overrides)
    if find_spec("lm_eval") is None:
        raise UserError("lm_eval", "pip install -e '.[lm-eval]'", why="lm-evaluation-harness is not installed")
    evaluate(chosen, options)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. The options have lm-eval's names and meanings."""
    parser = argparse.ArgumentParser(prog="python -m evals lm-eval", description=__doc__)
    parser.add_argument("--tasks", required=True, help="task names or patterns, separated by commas")
    parser.add_argument("--include_path", help="directory with more tasks")
    parser.add_argument("--limit", type=float, help="number of documents per task; below 1: a share of the documents")
    parser.add_argument("--num_fewshot", type=int, help="number of examples in each context")
    parser.add_argument("--apply_chat_template", action="store_true", help="write contexts in the model's chat format")
    parser.add_argument("--gen_kwargs", help="generation arguments, such as max_gen_toks=32")
    parser.add_argument(
        "--metadata",
        type=json.loads,
        default={},
        help="""JSON that tasks read, such as '{"max_seq_lengths": [4096], "tokenizer": "<folder>"}' for RULER""",
    )
    parser.add_argument("--output_path", "-o", help="directory or .json file for the results")
    parser.add_argument("--log_samples", action="store_true", help="also write the result of each document")
    parser.add_argument("overrides", nargs="*", metavar="setting=value", help=f"as for run.py: {', '.join(TAKEN)}")
    options = parser.parse_intermixed_args(arguments)
    if not isinstance(options.metadata, dict):
        parser.error("--metadata needs a JSON object")
    if options.log_samples and not options.output_path:
        parser.error("--log_samples needs --output_path")
    return options


def setting(overrides: Sequence[str]) -> Job:
    """Return the job of these settings. Raises `UserError` for settings that do not apply to lm-eval's tasks."""
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name.partition(".")[0].partition("/")[0] not in TAKEN:
            raise UserError(
                name,
                f"choose from {', '.join(TAKEN)}",
                value=override.partition("=")[2],
                why="not a setting of lm-eval's tasks",
            )
    chosen = job(*overrides)
    refuse_shared(chosen.method, "lm-eval")
    return chosen


def evaluate(chosen: Job, options: argparse.Namespace) -> None:
    """Run the tasks, print lm-eval's table, and write its JSON if a path is given."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import make_table

    manager, tasks = tasks_of(options)
    lm = model_of(chosen)
    tracker = EvaluationTracker(output_path=options.output_path)
    results: Any = simple_evaluate(
        lm,
        model_args={"pretrained": chosen.model.name, "method": chosen.method.name, "budget": written(chosen.budget)},
        tasks=tasks,
        task_manager=manager,
        fewshot_as_multiturn=options.apply_chat_template,
        evaluation_tracker=tracker,
        **{name: getattr(options, name) for name in PASSED_ON},
    )
    samples = results.pop("samples", None)
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"] if samples else ():
        tracker.save_results_samples(task_name=name, samples=samples[name])
    print(f"{chosen.model.name}, {chosen.label}: {lm.summary}")
    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))


def tasks_of(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Return lm-eval's task manager and the names of the requested tasks. Raises `UserError` for an unknown task."""
    from lm_eval.tasks import TaskManager

    patterns, chosen = options.tasks.split(","), {}
    # Try without lm-eval's own 14,000 tasks, which take long to read: tasks of --include_path may not need them.
    for defaults in [False, True] if options.include_path else [True]:
        manager = TaskManager(
            include_path=options.include_path, include_defaults=defaults, metadata=options.metadata or None
        )
        chosen = {pattern: manager.match_tasks([pattern]) for pattern in patterns}
        names = list(dict.fromkeys(chain.from_iterable(chosen.values())))
        if all(chosen.values()) and (defaults or set(names) <= set(manager.all_subtasks)):
            return manager, names
    unknown = next(pattern for pattern, names in chosen.items() if not names)
    raise UserError("--tasks", "check the name, or set --include_path", value=unknown, why="lm-eval has no such task")


def model_of(chosen: Job) -> Any:
    """Return the job's model with its method, as lm-eval takes it."""
    from compresskv.models import load
    from evals.lm_eval.model import CompressedLM
    from evals.running.methods import build_method

    model = load(chosen.model)
    for note in model.notes:
        print(f"{model.name}: {note}", file=sys.stderr)
    return CompressedLM(
        model.model,
        build_method(model, chosen),
        chosen.budget,
        prefill_chunk=chosen.prefill_chunk,
        attention=model.backend,
        tokenizer=model.tokenizer,
        max_length=model.window,
        chat_template_args=dict(model.chat_template_kwargs),
    )


if __name__ == "__main__":
    from evals.cli import start

    start("lm-eval")
