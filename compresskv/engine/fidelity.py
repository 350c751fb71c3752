"""Measure the distance of a setting from the full cache: next-token distributions on the same text, teacher-forced.

Two texts are read: the full cache's greedy answer, and a reference answer. Both follow the prompt whose prefill the
settings share, so only a few decode steps are added.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compresskv.engine.decode import answering
from compresskv.engine.forward import forward_given
from compresskv.engine.memory import batches
from compresskv.engine.prefill import Prefill, finite, non_finite
from compresskv.engine.rotary import regime
from compresskv.engine.setting import FULL, Setting
from compresskv.schedule import AFTER_PROMPT, EvictionSchedule
from compresskv.selection import Kept

LOGITS = 1 << 26
"""Maximum size in bytes of the logits held at once. It limits the tokens of a forward pass."""


@dataclass(frozen=True)
class Control:
    """Distance of the full cache from itself in another batch: the noise of kernels, to compare with eviction.

    The fields are as in `Fidelity`. They compare the full cache alone with the full cache as a row of a batch with
    evicted rows: the rows of its batch, or only the smallest row if its batch has no others.
    """

    agreement: float
    kl_per_token: Sequence[float]


@dataclass(frozen=True)
class Fidelity:
    """The fidelity of one setting on one sample.

    `kl`: KL(full ‖ setting) of the next-token distributions in nats, mean over the tokens of the full cache's answer,
    or of its continuation. If the prompt is compressed whole, the first token does not count, since eviction cannot
    affect it. `agreement`: share of these tokens, 0 to 1, where both have the same most probable token. Both are None
    if no token counts. `reference_nll`: negative log-likelihood of the reference answer in nats per token; None without
    a reference. `kl_per_token`: the KL at each token, in order; `kl` is the mean. `control`: for the full cache, if
    another setting of the same prompt evicts and a token counts.
    """

    kl: float | None
    agreement: float | None
    reference_nll: float | None
    kl_per_token: Sequence[float]
    control: Control | None = None


@torch.no_grad()
def fidelity(
    model: PreTrainedModel,
    prompt: Prefill,
    kept: Mapping[int, Kept],
    answer: Sequence[int],
    reference: Sequence[int],
    limit: int,
    settings: Sequence[Setting] = (),
    schedule: EvictionSchedule = AFTER_PROMPT,
) -> dict[int, Fidelity]:
    """Return the fidelity of the settings that keep `kept`, by their index.

    `answer`: token ids that the full cache generated, perhaps past its answer. `reference`: token ids of the reference
    answer, may be empty. `limit`: bytes that a batch may take, with the full caches beside it. `settings`, by the same
    index, are needed for a `schedule` that decodes: each then evicts at the same steps as while it generates. They also
    name the full cache, which gets a `Control`. `model` must be `attached`. Raises `NonFiniteError`.
    """
    room = max(len(answer), len(reference), 1)
    places = list(kept)
    evicting = [place for place in places if settings and settings[place].budget is not None]
    controlled = set(places).difference(evicting) if evicting else ()
    limit -= (2 if controlled else 1) * prompt.row_bytes(prompt.kept(FULL), room)  # one beside each batch, one alone
    measured: dict[int, Fidelity] = {}
    beside: dict[int, list[int]] = {}
    for batch in batches([prompt.row_bytes(kept[place], room) for place in places], limit):
        chosen = [places[i] for i in batch]
        rows = Rows([kept[p] for p in chosen], [settings[p] for p in chosen] if schedule.decodes else [], schedule)
        kl, agreement, per_token = _distances(model, prompt, rows, answer)
        nll = _likelihoods(model, prompt, rows, reference)
        for row, place in enumerate(chosen):
            measured[place] = Fidelity(kl[row], agreement[row], nll[row], per_token[row])
            beside[place] = [other for other in chosen if settings and settings[other].budget is not None]
    for place in controlled:
        others = beside[place] or [min(evicting, key=lambda other: prompt.row_bytes(kept[other], room))]
        rows = Rows([kept[p] for p in others], [settings[p] for p in others], schedule)
        measured[place] = replace(measured[place], control=_control(model, prompt, rows, answer))
    return measured


@dataclass(frozen=True)
class Rows:
    """The kept tokens of each row of a batch and, for a `schedule` that decodes, its setting."""

    kept: Sequence[Kept]
    settings: Sequence[Setting]
    schedule: EvictionSchedule

    def __len__(self) -> int:
        return len(self.kept)


def _steps(prompt: Prefill, answer: Sequence[int]) -> int:
    """Return how many tokens of the answer eviction can affect: without a question, not the first."""
    return len(answer) - (not prompt.question.numel())


def _distances(
    model: PreTrainedModel, prompt: Prefill, rows: Rows, answer: Sequence[int]
) -> tuple[list[float | None], list[float | None], list[list[float]]]:
    """Return the mean KL, the share of equal most probable tokens, and the KL at each token, of each row."""
    steps = _steps(prompt, answer)
    if steps < 1:
        return [None] * len(rows), [None] * len(rows), [[]] * len(rows)
    kl = torch.zeros(len(rows), dtype=torch.float64, device=prompt.logits.device)
    agreement = torch.zeros_like(kl)
    per_token: list[Tensor] = []
    beside_full = Rows([prompt.kept(FULL), *rows.kept], [FULL, *rows.settings], rows.schedule)
    predictions = _predictions(model, prompt, beside_full, answer)
    for logits in islice(predictions, len(answer) - steps, None):
        log_p = logits.log_softmax(-1)
        full, others = log_p[:1], log_p[1:]
        per_token.append((full.exp() * (full - others)).sum(-1))
        kl += per_token[-1]
        agreement += others.argmax(-1) == full.argmax(-1)
    return (kl / steps).tolist(), (agreement / steps).tolist(), torch.stack(per_token, 1).tolist()


def _control(model: PreTrainedModel, prompt: Prefill, beside: Rows, answer: Sequence[int]) -> Control | None:
    """Compare the full cache as a row `beside` others with the full cache alone, in the memory of their batch."""
    steps = _steps(prompt, answer)
    if steps < 1:
        return None
    pair = Rows([prompt.kept(FULL), *beside.kept], [FULL, *beside.settings], beside.schedule)
    alone = Rows([prompt.kept(FULL)], [FULL], beside.schedule)
    both = zip(*(_predictions(model, prompt, rows, answer) for rows in (alone, pair)), strict=True)
    agreement, per_token = 0, []
    for one, other in islice(both, len(answer) - steps, None):
        log_p, log_q = one[0].log_softmax(-1), other[0].log_softmax(-1)
        per_token.append((log_p.exp() * (log_p - log_q)).sum())
        agreement += int(log_p.argmax() == log_q.argmax())
    return Control(agreement / steps, torch.stack(per_token).clamp(min=0).tolist())


def _likelihoods(model: PreTrainedModel, prompt: Prefill, rows: Rows, reference: Sequence[int]) -> list[float | None]:
    """Return the negative log-likelihood of `reference` per token, of each row."""
    if not reference:
        return [None] * len(rows)
    nll = torch.zeros(len(rows), dtype=torch.float64, device=prompt.logits.device)
    for token, logits in zip(reference, _predictions(model, prompt, rows, reference), strict=True):
        nll -= logits.log_softmax(-1)[:, token]
    return (nll / len(reference)).tolist()


def _predictions(model: PreTrainedModel, prompt: Prefill, rows: Rows, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Feed `tokens` to all rows, and yield the logits that predict each token: [rows, vocabulary], float32."""
    given = tokens[:-1]
    cache, logits = answering(model, prompt, rows.kept, rows.settings, max(len(given), 1), rows.schedule)
    if not finite(logits).all():
        raise non_finite(model, f"after a prompt of {prompt.end} tokens")
    yield logits
    # If RoPE depends on the length, each token uses the RoPE of the text up to this token.
    alike = regime(model, prompt.end + 1) == regime(model, prompt.end + len(given))
    together = max(1, LOGITS // (len(rows) * prompt.logits.nbytes)) if alike else 1
    start = 0
    while start < len(given):
        until_eviction = cache.eviction.left if cache.eviction else together
        fed = torch.tensor(given[start : start + min(together, until_eviction)], device=prompt.ids.device)
        logits = forward_given(model, fed, len(rows), cache, prompt.end + start)
        start += fed.numel()
        if not finite(logits).all():
            raise non_finite(model, f"after a given answer of {start} tokens")
        yield from logits.unbind(1)
