"""Print the samples of a RULER task in the format of RULER's files: `python -m evals ruler --task vt --length 4096`.

Prints one JSON object per line, for the tokenizer of the model. Settings such as model.path=<folder> choose any model.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice

from compresskv.checking import checked
from compresskv.errors import UserError
from evals.compose import job
from evals.ruler.config import Ruler
from evals.ruler.tasks import TASKS


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the samples. Raises `UserError`."""
    options = parsed(arguments)
    fields = {
        "name": "ruler",
        "tasks": [options.task],
        "lengths": [options.length],
        "samples": options.samples,
        "seed": options.seed,
        "qa": options.qa,
        "template_tokens": options.model_template_token,
    }
    config = checked("eval", Ruler, fields)
    config.check()
    for override in options.overrides:
        if not override.lstrip("+~").startswith("model"):
            raise UserError(override.partition("=")[0], "leave it out", why="the samples depend only on model")
    model = job(f"model={options.model}", *options.overrides).model

    from compresskv.models import load_tokenizer
    from evals.ruler.samples import samples

    tokenizer, (task,) = load_tokenizer(model), config.chosen
    made = samples(
        task, tokenizer, options.length, config.seed, config.folder, config.template_tokens, options.remove_newline_tab
    )
    for sample in islice(made, config.samples):
        print(json.dumps(sample.line), flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Options that RULER also has are named as in RULER."""
    parser = argparse.ArgumentParser(prog="python -m evals ruler", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--length", required=True, type=int, help="tokens of a prompt and its answer")
    parser.add_argument("--samples", type=int, default=10, help="number of samples to print (default: 10)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the random text (default: 42)")
    parser.add_argument("--model", default="smollm2-135m", help="a name in conf/model (default: smollm2-135m)")
    parser.add_argument("--qa", help="the folder of squad.json and hotpotqa.json, for qa_1 and qa_2")
    parser.add_argument("--remove_newline_tab", action="store_true", help="remove line breaks and tabs")
    parser.add_argument(
        "--model_template_token", type=int, default=0, help="tokens reserved for the chat format (default: 0)"
    )
    parser.add_argument("overrides", nargs="*", metavar="model.setting=value", help="as for run.py")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    from evals.cli import start

    start("ruler")
