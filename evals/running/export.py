"""`export.kept=true`: write the kept tokens of each sample to a file in `kept/`, next to the setting's lines.

`compresskv.kept_tokens` has the format. The full cache, which keeps every token, has no files.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from compresskv.engine.generation import Generation
from compresskv.engine.setting import Setting
from compresskv.kept_tokens import encoded, prompt_sha256, token_bytes
from compresskv.models import LoadedModel
from evals.files import write_bytes
from evals.job import Job, Sample

ABOUT = 1000
"""Approximate bytes of a file's header."""

LONGEST_NAME = 200
"""Maximum bytes of a file name; file systems allow 255."""


def exports(job: Job) -> bool:
    """Return whether a job writes kept tokens."""
    return job.export.kept and job.budget is not None


def path_of(folder: Path, id: str) -> Path:
    """Return the path of a sample's file. The name is the percent-encoded id, or its hash if the id is too long."""
    name = quote(id, safe="", errors="surrogatepass")
    if len(name) > LONGEST_NAME:
        name = f"={hashlib.sha256(name.encode()).hexdigest()}"  # no encoded id begins like this
    return folder / "kept" / f"{name}.safetensors"


def write(
    model: LoadedModel,
    folder: Path,
    job: Job,
    sample: Sample,
    kept: Generation,
    compressed: int,
    later: bool = False,
) -> None:
    """Write which of the first `compressed` tokens a setting kept. `later`: an earlier run wrote the sample's line."""
    about = {
        "sample": sample.id.encode(errors="backslashreplace").decode(),
        "prompt_sha256": prompt_sha256(sample.ids),  # as in the sample's line
        "prompt_tokens": str(sample.ids.numel()),
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "protocol": job.protocol.name,
        "method": job.method.name,
        "budget": str(job.budget),
        "when": job.eviction.when,
        "made": "after its line" if later else "with its line",
        "setting": folder.relative_to(job.results / "runs").as_posix(),
    }
    content = encoded(kept.positions, model.model.config, sample.ids[:compressed], about)
    write_bytes(path_of(folder, sample.id), content)


def said(model: LoadedModel, samples: Iterable[tuple[Setting, int]], longest: int) -> str:
    """Describe the number and maximum size of the files to write, for prompts of up to `longest` tokens."""
    files = total = 0
    for setting, count in samples:
        budget = min(setting.tokens(longest) or 0, longest)
        files += count
        total += count * (model.layers * model.kv_heads * (budget * token_bytes(longest) + 4) + ABOUT)
    return f"export.kept writes {files} files of kept tokens, at most {total / 1e6:.1f} MB in all"
