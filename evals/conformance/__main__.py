"""Check a method on tiny random models: `python -m evals conformance method=<name> [budget=…] [--config-dir …]`.

The checks take seconds on a CPU and download nothing. Further words are settings as for run.py, such as
method.scorer.gamma=3 or method/allocator=uniform. The exit code is 1 if a check fails.
"""

import argparse

import torch

from compresskv.errors import UserError
from evals.conformance import check
from evals.console import visible


def main(arguments: list[str] | None = None) -> int:
    """Check one method, print a line for each check, and return the exit code. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="python -m evals conformance", description=__doc__)
    parser.add_argument("settings", nargs="+", help="method=<name>, and other settings, such as budget=128")
    parser.add_argument("--config-dir", "-cd", help="your folder with method/<name>.yaml, as for run.py")
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)  # with tensors this small, threads only wait for each other
    given = dict(setting.partition("=")[::2] for setting in options.settings)
    if not given.get("method"):
        raise UserError("method", "name a method, such as method=snapkv", why="not set")
    budget = given.pop("budget", "256")
    if not budget.isdecimal() or len(budget) > 9:
        raise UserError("budget", "choose a whole number of tokens", value=budget)
    name = given.pop("method")
    others = [f"{setting}={value}" for setting, value in given.items()]
    conformance = check(name, *others, budget=int(budget), config_dir=options.config_dir)
    print(visible(str(conformance)))
    return 0 if conformance.passed else 1


if __name__ == "__main__":
    from evals.cli import start

    start("conformance")
