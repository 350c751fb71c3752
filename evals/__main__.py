"""`python -m evals <command>`: see `evals.cli`."""

from evals.cli import start

if __name__ == "__main__":
    start()
