"""CompressKV-Bench: `python run.py method=compresskv budget=256`; `--help` lists everything that can be set."""

from evals.command import main

if __name__ == "__main__":
    main()
