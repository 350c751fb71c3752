"""Define the fields of a setting's files: sample lines and summaries.

`results/runs/<model>/<eval>/<task>/<protocol>/<method>/<budget>-<hash8>/` holds

- `samples.jsonl`: one line per sample (`SampleLine`), appended and flushed when the sample is finished. A failed sample
  also has a line (`FailedLine`), which is not counted in any mean or table, and a second line after another attempt.
- `summary.json` (`Summary`): the means over the samples listed in its field `samples`. It covers the samples of all
  finished runs: a run on fewer samples computes its report from the lines and does not change the file, and a run on
  further samples extends it.
- `config.yaml`: the configuration that the summary was made with.

Readers accept missing and unknown fields, so files of older and newer versions can be read.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from compresskv.budget import budget_from
from compresskv.checking import AfterValidator, Ge, Le, MaxLen, MinLen
from compresskv.errors import readable

LARGEST = 10**15
"""Largest absolute value of a number in results; larger numbers cannot be drawn."""

Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
Size = Annotated[float, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(0), Le(LARGEST)]
Label = Annotated[str, MinLen(1), MaxLen(400)]
"""A name: the name of a folder, or a combination of several names."""

Bounds = Annotated[list[Number], MinLen(2), MaxLen(2)] | None

exactly = with_config(ConfigDict(strict=True, allow_inf_nan=False))
"""Decorator for the `TypedDict`s of files: types are strict (true is not a number), and numbers must be finite."""

SCHEMA_VERSION = 2
"""Version of `Summary`. Version 1 has no `schema_version`, no checksum, and [score, score] as one sample's interval."""

Line = dict[str, Any]
"""A sample's line as it is read: the fields of `SampleLine`, the fields of its evaluation, and perhaps newer fields."""


NAMED = ("model", "eval", "task", "protocol", "method", "budget")
"""Fields that name a setting, in the order of its path."""

FIDELITY = ("kl", "agreement", "reference_nll")
"""Fields of a line that compare a setting with the full cache. Some samples lack these fields."""

Budget = Annotated[int, Ge(1)] | Annotated[str, AfterValidator(lambda value: str(budget_from(value)))] | None
Heads = Annotated[list[Size], MinLen(1)]


@exactly
class Timing(TypedDict, total=False):
    """Time that the prompt of a sample took for all its settings."""

    batch_seconds: Required[Size]
    shared_by: Annotated[int, Ge(1)] | None  # number of settings
    environment: str | dict[str, Any]  # its key; the first line of each environment has it in full, as in summaries
    checksum: str  # of these and of the line's `batch`


@exactly
class SampleLine(TypedDict, total=False):
    """One sample of one setting. Evaluations add further fields, such as `length` and `depth`, or `answers`."""

    id: Required[str]  # of the sample within its task: `L2000-D50-N0`, or a row of a LongBench file
    prediction: str  # the generated text, special tokens left out
    score: Number  # 0 to 100, by the task's metric; `score_<name>` holds further metrics of the same text
    prompt_tokens: Count
    truncated: bool  # whether the prompt lost its middle to fit the model's window
    official: bool  # LongBench: whether it appears to be the official row of that number
    prompt_tail: str  # the last 200 characters of the prompt; absent in lines of older versions
    prompt_sha256: str  # of the prompt's token ids, 16 digits: equal for settings that saw the same prompt
    new_tokens: Count  # generated
    realised_budget: Size  # mean number of prompt tokens kept per layer and KV head
    context_tokens: Count  # of the prompt, where only the part before the question was compressed
    peak_kept: Size  # the largest mean number of tokens held, where eviction continued while decoding
    cache_bytes: Count  # of the kept keys and values
    total_cache_bytes: Count  # including sliding-window layers, which are never evicted; absent without such layers
    kept: list[Size | Heads]  # tokens kept in each layer: one number, or one per KV head where they differ
    compressed: bool  # whether anything was evicted
    batch: list[str]  # the settings that were decoded together, as <protocol>/<method>/<budget>-<hash8>
    timing: Timing
    of: dict[str, str]  # `folder` below runs and `model_fingerprint` of the setting; absent in lines of older versions
    kl: Number | None  # nats per token, KL(full cache ‖ this setting) over the full cache's answer
    agreement: Number | None  # 0 to 1: share of these tokens where both have the same most probable token
    reference_nll: Number | None  # nats per token: negative log-likelihood of the reference answer
    kl_per_token: list[Number]  # values whose mean is `kl`, to 4 decimals; absent in lines of older versions
    control_agreement: Number  # of the full cache with itself in another batch, where other settings evict
    control_kl_per_token: list[Number]  # nats, three digits; as `kl_per_token` is for settings that evict
    checksum: str  # of all other fields except `batch` and `timing`, 16 digits; absent in lines of older versions


class FailedLine(TypedDict, total=False):
    """A sample that failed, with the fields that its evaluation records of the prompt."""

    id: Required[str]
    error: Required[str]  # why, in a sentence
    of: dict[str, str]
    checksum: str


@exactly
class Mean(TypedDict):
    """A mean over `n` samples with its 95 % bootstrap interval (None for a single sample)."""

    mean: Number
    interval: Bounds
    n: Count


@exactly
class Summary(TypedDict, total=False):
    """One setting's result on one task."""

    schema_version: int
    # The setting.
    model: Label
    eval: Label
    task: Label
    protocol: Label
    method: Label
    budget: Budget  # tokens per layer and KV head, observation window included; None: the full cache
    folder: str  # below runs; absent in summaries of older versions
    # The result: means over the lines named in `samples`.
    score: Required[Number]  # 0 to 100, two decimals
    interval: Bounds  # 95 % bootstrap interval of `score`; None for a single sample
    n: Count
    realised_budget: Size  # as in `SampleLine`
    cache_bytes: Count
    total_cache_bytes: Count
    uncompressed: Count  # number of samples that kept everything
    truncated: Count  # number of prompts that lost their middle
    unofficial: Count  # number of samples that are not official rows; absent if 0
    failed: Count  # number of failed samples, which make the setting incomplete; absent if 0
    scores: dict[str, Number]  # means of the further metrics, by field
    fidelity: dict[str, Mean]  # of the fields in FIDELITY; absent if no sample has them
    samples: Required[list[str]]  # ids of the lines that this covers, in the task's order
    # Fields that can change a prediction; the folder's hash covers them.
    model_fingerprint: str
    dtype: str
    backend: str
    prompt: dict[str, Any]  # identity of the task's prompts
    method_in_full: Any  # scorer and allocator with every parameter
    # Fields for reproducing and checking the result. No checksum covers these three.
    config: dict[str, Any]  # the resolved configuration
    # Commit, library versions, hardware, and their `key`, which lines refer to. If the lines come from several
    # environments, this is the environment of most lines; `others` holds the rest. Environments of older lines have no
    # key.
    environment: dict[str, Any]
    timing: dict[str, float]  # `seconds` of all samples
    checksum: str  # of all other fields except config, environment and timing, 16 digits


@exactly
class Scorer(TypedDict, total=False):
    """The scorer in a configuration, which selects the tokens."""

    heads: Annotated[int, Ge(1)] | str | None  # a word or null is a rule; `method_in_full` has the resulting heads
    head_scores: str


@exactly
class Method(TypedDict, total=False):
    """The method in a configuration; older versions store its parts as strings."""

    name: Label
    scorer: Scorer | str | None
    allocator: dict[str, Any] | str | None


@exactly
class OfEval(TypedDict, total=False):
    """The fields of an evaluation in a configuration that reports need."""

    _target_: str
    name: Label
    haystack: str | list[str]
    needle: str
    needles: Count
    masked: list[Count]
    max_length: Count | None


@exactly
class Config(TypedDict, total=False):
    """The fields of a resolved configuration that are read; older versions store some mappings as names."""

    model: dict[str, Any] | str
    method: Method | str
    eval: OfEval | str
    protocol: dict[str, Any] | str
    observation: dict[str, Any]
    calibration: str
    budget: Budget
    experiment: Label | list[Label]  # of conf/experiment; absent if no experiment was chosen


@exactly
class Hardware(TypedDict, total=False):
    machine: str
    cpu: str
    cpu_threads: Count
    gpus: list[str]
    cuda: str | None


@exactly
class Environment(TypedDict, total=False):
    """The fields of a run's environment that are shown."""

    version: str | None  # of this package
    git_commit: str | None  # None for an installed package
    git_dirty: bool
    python: str
    versions: dict[str, str]
    hardware: Hardware


def misfit(kind: Any, value: Any) -> str:
    """Describe the first field of `value` that does not fit the `TypedDict` `kind`; "" if all fields fit."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{readable(place)}={readable(first['input'], 40)}: {first['msg']}" if place else first["msg"]
    except (RecursionError, OverflowError) as error:
        return str(error)
    return ""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checksum(content: Mapping[str, Any], left_out: tuple[str, ...] = ()) -> str:
    """Return 16 digits of the hash of all fields except `left_out`; the order of fields does not matter."""
    covered = {key: value for key, value in content.items() if key not in left_out}
    text = json.dumps(covered, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def experiments_of(config: Mapping[str, Any]) -> list[str]:
    """Return the experiments of conf/experiment that ran the setting with this configuration."""
    named = config.get("experiment") or []
    return [named] if isinstance(named, str) else sorted(name for name in named if isinstance(name, str))
