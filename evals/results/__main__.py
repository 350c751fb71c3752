"""`python -m evals results`: see `evals.report.results`."""

if __name__ == "__main__":
    from evals.cli import start

    start("results")
