"""CompressKV-Bench: `python run.py method=compresskv budget=256`; `--help` lists everything that can be set."""

import signal
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from compresskv.model_config import name_of

# `model.path=<id or directory>` names the model after it, unless `model.name` says otherwise.
OmegaConf.register_new_resolver("name_of", lambda path, name: name if path is None else name_of(path))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    run([config])


def run(configs: list[DictConfig], outcome: Path | None = None) -> None:
    """Run composed configurations; `outcome` gets what became of each, as JSON.

    A user's mistake ends the process with one sentence, without a traceback.
    """
    # Imported here, so that --help and --cfg answer without torch.
    from compresskv.errors import UserError
    from evals.job import job_from
    from evals.sweep import run as run_jobs

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        run_jobs([job_from(OmegaConf.to_container(config, resolve=True)) for config in configs], outcome)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: finished samples are safe, the same command goes on from there")


if __name__ == "__main__":
    main()
