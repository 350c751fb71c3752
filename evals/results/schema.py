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

from typing import Any, Required, TypedDict

SCHEMA_VERSION = 2
"""Version of `Summary`. Version 1 has no `schema_version`, no checksum, and [score, score] as one sample's interval."""

Line = dict[str, Any]
"""A sample's line as it is read: the fields of `SampleLine`, those of its evaluation, and perhaps newer ones."""

FIDELITY = ("kl", "agreement", "reference_nll")
"""Fields of a line that say how far a setting is from the full cache. Not every sample has them."""


class SampleLine(TypedDict, total=False):
    """One sample of one setting. An evaluation adds fields of its own, such as `length` and `depth`, or `answers`."""

    id: Required[str]  # of the sample within its task: `L2000-D50-N0`, or a row of a LongBench file
    prediction: str  # the generated text, special tokens left out
    score: float  # 0 to 100, by the task's metric; `score_<name>` are further metrics of the same text
    prompt_tokens: int
    truncated: bool  # whether the prompt lost its middle to fit the model's window
    official: bool  # LongBench: whether it is the official row of that number, as far as can be told
    prompt_tail: str  # the last 200 characters of the prompt; absent in lines of older versions
    prompt_sha256: str  # of the prompt's token ids, 16 digits: equal for settings that saw the same prompt
    new_tokens: int  # generated
    realised_budget: float  # mean number of prompt tokens kept per layer and KV head
    cache_bytes: int  # of the kept keys and values
    total_cache_bytes: int  # with those of sliding-window layers, which nothing evicts; absent without such layers
    kept: list[int | list[int]]  # tokens kept in each layer: one number, or one per KV head where they differ
    compressed: bool  # whether anything was evicted
    batch: list[str]  # the settings that were decoded together, as <protocol>/<method>/<budget>-<hash8>
    # `batch_seconds`, `shared_by` how many settings, `environment` by its key, or in full in the first line of each, as
    # summaries have it, and `checksum` of these and of `batch`.
    timing: dict[str, Any]
    of: dict[str, str]  # `folder` below runs and `model_fingerprint` of the setting; absent in lines of older versions
    kl: float | None  # nats per token, KL(full cache ‖ this setting) over the full cache's answer
    agreement: float | None  # 0 to 1: share of these tokens where both have the same most probable token
    reference_nll: float | None  # nats per token: negative log-likelihood of the reference answer
    kl_per_token: list[float]  # what `kl` is the mean of, to 4 decimals; absent in lines of older versions
    checksum: str  # of all other fields but `batch` and `timing`, 16 digits; absent in lines of older versions


class FailedLine(TypedDict, total=False):
    """A sample that was tried and has no result, with what its evaluation says of the prompt."""

    id: Required[str]
    error: Required[str]  # why, in a sentence
    of: dict[str, str]
    checksum: str


class Mean(TypedDict):
    """A mean over `n` samples with its 95 % bootstrap interval, None where one sample has none."""

    mean: float
    interval: list[float] | None
    n: int


class Summary(TypedDict, total=False):
    """One setting's result on one task."""

    schema_version: int
    # The setting.
    model: Required[str]
    eval: Required[str]
    task: Required[str]
    protocol: Required[str]
    method: Required[str]
    budget: Required[int | None]  # tokens per layer and KV head, observation window included; None: the full cache
    folder: str  # below runs; absent in summaries of older versions
    # The result: means over the lines named in `samples`.
    score: Required[float]  # 0 to 100, two decimals
    interval: Required[list[float] | None]  # 95 % bootstrap interval of `score`; None for a single sample
    n: Required[int]
    realised_budget: float  # as in `SampleLine`
    cache_bytes: int
    total_cache_bytes: int
    uncompressed: int  # how many samples kept everything
    truncated: int  # how many prompts lost their middle
    unofficial: int  # how many samples are not official rows; absent if none
    failed: int  # how many samples were tried and have no result, so that this is incomplete; absent if none
    scores: dict[str, float]  # means of the further metrics, by field
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
