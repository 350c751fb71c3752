"""What is in a setting's files: the fields of a sample's line and of a summary.

`results/runs/<model>/<eval>/<task>/<protocol>/<method>/<budget>-<hash8>/` holds

- `samples.jsonl`: one line per sample (`SampleLine`), appended and flushed as it is finished; a sample that failed has
  a line (`FailedLine`) too, which no mean and no table counts, and a second one when it was tried again;
- `summary.json` (`Summary`): the means over the samples that it `samples` names. It holds the widest coverage that was
  ever asked for and finished: a narrower run computes its report from the lines and leaves the file alone, one that
  overlaps extends it;
- `config.yaml`: the configuration that the summary was made with.

Readers take fields that are missing or unknown: files of older and newer versions stay readable.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, NoReturn, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from compresskv.budget import budget_from
from compresskv.checking import AfterValidator, Ge, Le, MaxLen, MinLen
from compresskv.errors import readable

LARGEST = 10**15
"""No number of a result is as large; those that are cannot be drawn."""

Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
Size = Annotated[float, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(0), Le(LARGEST)]
Label = Annotated[str, MinLen(1), MaxLen(400)]
"""A name that may have been a folder's, or was made of some."""

Bounds = Annotated[list[Number], MinLen(2), MaxLen(2)] | None

exactly = with_config(ConfigDict(strict=True, allow_inf_nan=False))
"""Decorates the `TypedDict` of a file: true is no number, a text is no list, and numbers are finite."""

SCHEMA_VERSION = 2
"""Version of `Summary`. Version 1 has no `schema_version`, no checksum, and [score, score] as one sample's interval."""

Line = dict[str, Any]
"""A sample's line as it is read: the fields of `SampleLine`, those of its evaluation, and perhaps newer ones."""


def _share(value: str) -> str:
    return str(budget_from(value))


NAMED = ("model", "eval", "task", "protocol", "method", "budget")
"""What a setting is named by, in the order of its path."""

FIDELITY = ("kl", "agreement", "reference_nll")
"""Fields of a line that say how far a setting is from the full cache. Not every sample has them."""


Budget = Annotated[int, Ge(1)] | Annotated[str, AfterValidator(_share)] | None
Heads = Annotated[list[Size], MinLen(1)]


@exactly
class Timing(TypedDict, total=False):
    """How long the prompt of a sample took for all its settings."""

    batch_seconds: Required[Size]
    shared_by: Annotated[int, Ge(1)] | None  # how many settings
    environment: str | dict[str, Any]  # by its key, or in full in the first line of each, as summaries have it
    checksum: str  # of these and of the line's `batch`


@exactly
class SampleLine(TypedDict, total=False):
    """One sample of one setting. An evaluation adds fields of its own, such as `length` and `depth`, or `answers`."""

    id: Required[str]  # of the sample within its task: `L2000-D50-N0`, or a row of a LongBench file
    prediction: str  # the generated text, special tokens left out
    score: Number  # 0 to 100, by the task's metric; `score_<name>` are further metrics of the same text
    prompt_tokens: Count
    truncated: bool  # whether the prompt lost its middle to fit the model's window
    official: bool  # LongBench: whether it is the official row of that number, as far as can be told
    prompt_tail: str  # the last 200 characters of the prompt; absent in lines of older versions
    prompt_sha256: str  # of the prompt's token ids, 16 digits: equal for settings that saw the same prompt
    new_tokens: Count  # generated
    realised_budget: Size  # mean number of prompt tokens kept per layer and KV head
    context_tokens: Count  # of the prompt, where only the part before the question was compressed
    peak_kept: Size  # the largest mean number of tokens held, where eviction continued while decoding
    cache_bytes: Count  # of the kept keys and values
    total_cache_bytes: Count  # with those of sliding-window layers, which nothing evicts; absent without such layers
    kept: list[Size | Heads]  # tokens kept in each layer: one number, or one per KV head where they differ
    compressed: bool  # whether anything was evicted
    batch: list[str]  # the settings that were decoded together, as <protocol>/<method>/<budget>-<hash8>
    timing: Timing
    of: dict[str, str]  # `folder` below runs and `model_fingerprint` of the setting; absent in lines of older versions
    kl: Number | None  # nats per token, KL(full cache ‖ this setting) over the full cache's answer
    agreement: Number | None  # 0 to 1: share of these tokens where both have the same most probable token
    reference_nll: Number | None  # nats per token: negative log-likelihood of the reference answer
    kl_per_token: list[Number]  # what `kl` is the mean of, to 4 decimals; absent in lines of older versions
    control_agreement: Number  # of the full cache with itself in another batch, where other settings evict
    control_kl_per_token: list[Number]  # nats, three digits; as `kl_per_token` is for settings that evict
    checksum: str  # of all other fields but `batch` and `timing`, 16 digits; absent in lines of older versions


class FailedLine(TypedDict, total=False):
    """A sample that was tried and has no result, with what its evaluation says of the prompt."""

    id: Required[str]
    error: Required[str]  # why, in a sentence
    of: dict[str, str]
    checksum: str


@exactly
class Mean(TypedDict):
    """A mean over `n` samples with its 95 % bootstrap interval, None where one sample has none."""

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
    uncompressed: Count  # how many samples kept everything
    truncated: Count  # how many prompts lost their middle
    unofficial: Count  # how many samples are not official rows; absent if none
    failed: Count  # how many samples were tried and have no result, so that this is incomplete; absent if none
    scores: dict[str, Number]  # means of the further metrics, by field
    fidelity: dict[str, Mean]  # of the fields in FIDELITY; absent where no sample has them
    samples: Required[list[str]]  # ids of the lines that this covers, in the task's order
    # What can change a prediction; the folder's hash is made of it.
    model_fingerprint: str
    dtype: str
    backend: str
    prompt: dict[str, Any]  # what the task's prompts are made of
    method_in_full: Any  # scorer and allocator with every parameter
    # What is needed to run it again, and to believe it. No checksum covers these three.
    config: dict[str, Any]  # the resolved configuration
    # Commit, library versions, hardware, and their `key`, by which lines name it; if its lines come from several, that
    # of most of them, and the rest in its `others`. Of older lines, which do not say, it has what was noted: no key.
    environment: dict[str, Any]
    timing: dict[str, float]  # `seconds` of all samples
    checksum: str  # of all other fields but config, environment and timing, 16 digits


@exactly
class Scorer(TypedDict, total=False):
    """Of a configuration: what chooses the tokens."""

    heads: Annotated[int, Ge(1)] | str | None  # a word, or null, is a rule: `method_in_full` has the heads
    head_scores: str


@exactly
class Method(TypedDict, total=False):
    """Of a configuration: a method; the parts of older versions are texts."""

    name: Label
    scorer: Scorer | str | None
    allocator: dict[str, Any] | str | None


@exactly
class OfEval(TypedDict, total=False):
    """Of a configuration: what reports need to know of an evaluation."""

    _target_: str
    name: Label
    haystack: str | list[str]
    needle: str
    needles: Count
    masked: list[Count]
    max_length: Count | None


@exactly
class Config(TypedDict, total=False):
    """What is read of a resolved configuration; older versions have names instead of some mappings."""

    model: dict[str, Any] | str
    method: Method | str
    eval: OfEval | str
    protocol: dict[str, Any] | str
    observation: dict[str, Any]
    calibration: str
    budget: Budget
    experiment: Label | list[Label]  # of conf/experiment; absent where none was chosen


@exactly
class Hardware(TypedDict, total=False):
    machine: str
    cpu: str
    cpu_threads: Count
    gpus: list[str]
    cuda: str | None


@exactly
class Environment(TypedDict, total=False):
    """What is shown of where a run happened."""

    version: str | None  # of this package
    git_commit: str | None  # None for an installed package
    git_dirty: bool
    python: str
    versions: dict[str, str]
    hardware: Hardware


def misfit(kind: Any, value: Any) -> str:
    """What of `value` is not as the `TypedDict` `kind` says, in a phrase that names the field; "" if all is."""
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
    """16 digits that change with any field but those `left_out`, whatever the order of the fields."""
    covered = {key: value for key, value in content.items() if key not in left_out}
    text = json.dumps(covered, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def loads(text: str) -> Any:
    """JSON as the standard has it. Raises `ValueError` for NaN and infinities, which Python's reader takes."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def dumps(value: Any, **options: Any) -> str:
    """JSON that can be encoded as UTF-8: readable, except where a text has half a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, **options)
    return text


def _finite(digits: str) -> float:
    """A number that is written with more digits than any has, such as 1e999, is refused too."""
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def experiments_of(config: Mapping[str, Any]) -> list[str]:
    """The experiments of conf/experiment that ran a setting, by its configuration: several may share one."""
    named = config.get("experiment") or []
    return [named] if isinstance(named, str) else sorted(name for name in named if isinstance(name, str))
