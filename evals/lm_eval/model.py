"""A model for lm-evaluation-harness that compresses each context before generating or scoring the text after it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compresskv.budget import Budget, budget_from, written
from compresskv.calibration import Calibration
from compresskv.chat import rendered
from compresskv.compressed_cache import compressed
from compresskv.engine.attention import attached, own_backend
from compresskv.engine.decode import decode_cache
from compresskv.engine.fidelity import LOGITS
from compresskv.engine.forward import forward_given
from compresskv.engine.in_layer import LayerwiseCache
from compresskv.engine.prefill import prefill
from compresskv.engine.rotary import regime, spanning, steady
from compresskv.engine.setting import Setting
from compresskv.errors import UserError
from compresskv.eviction import EvictionMethod
from compresskv.installed import generate_argument
from compresskv.methods import method_for
from compresskv.probe import refuse_unserved
from compresskv.selection import Kept, counts
from evals.running.described import describe

logger = logging.getLogger(__name__)

ALONE = ("num_beams", "num_return_sequences", "num_beam_groups")
"""Arguments of generation that request more than one sequence at a time."""

SET_HERE = ("max_length", "use_cache", "past_key_values", "stopping_criteria", "input_ids", "prefill_chunk_size")
"""Arguments of generation that the harness sets."""

Pair = tuple[tuple[str, str], list[int], list[int]]
"""A context and its continuation as text, and the token ids of each."""


class CompressedLM(HFLM):
    """lm-eval's Hugging Face model, `HFLM`, with a cache that compresses each request's context.

    Token ids at the border of context and continuation, truncation from the left, stop strings and the checkpoint's
    generation config work as in HFLM. Chat templates are rendered as in `compresskv.chat`, with HFLM's
    `chat_template_args` as their variables. `method`, `budget` and `calibration` are as in `compressed`;
    `prefill_chunk` is in tokens; `attention` is a backend (None: the best for the model).
    `options` are HFLM's. Raises `UserError` for a model, a budget or a batch size that eviction does not support.
    """

    def __init__(
        self,
        pretrained: PreTrainedModel | str,
        method: EvictionMethod | str | None,
        budget: Budget | str | None,
        calibration: Calibration | str | Path | None = None,
        prefill_chunk: int | None = None,
        attention: str | None = None,
        batch_size: int | str = 1,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        **options: Any,
    ):
        if str(batch_size) != "1":
            raise UserError(
                "batch_size", "use batch_size=1", value=batch_size, why="a compressed cache takes one prompt at a time"
            )
        super().__init__(pretrained, tokenizer=tokenizer, **options)
        refuse_unserved(self.model)
        if isinstance(method, str):
            method = method_for(self.model, method, calibration)
        self.setting = Setting(method, None if method is None or budget is None else budget_from(budget))
        self.method_in_full = describe(method)
        self.prefill_chunk = prefill_chunk
        self.attention = attention
        self.realised: list[float] = []
        """Mean number of tokens kept per layer and KV head, for each context that was compressed."""
        self.kept_whole = 0

    @contextmanager
    def compressed_cache(self, length: int) -> Iterator[LayerwiseCache]:
        """Provide a cache for one context of `length` tokens; on exit, record how much it kept."""
        method, budget = self.setting.method, self.setting.budget
        with compressed(
            self.model, method, budget, backend=self.attention, generation_config="honoured", prompt_length=length
        ) as cache:
            yield cache
        self._count(cache.kept, length)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render the messages with the model's chat template, with its fixed date.

        As in HFLM, if the template does not accept a system message, that message is left out with a warning. Raises
        `UserError` for a template that fails.
        """
        without = [message for message in chat_history if message["role"] != "system"]
        try:
            return rendered(chat_history, self.tokenizer, self.chat_template_args, not add_generation_prompt)
        except UserError as error:
            if len(without) == len(chat_history):
                raise
            logger.warning("the system message is ignored: %s", error)
        return rendered(without, self.tokenizer, self.chat_template_args, not add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate as HFLM does.

        Raises `UserError` for arguments of generation that leave no room for a context or are not supported here.
        """
        for task, given in {
            (request.task_name, repr(request.args[1])): request.args[1] for request in requests
        }.items():
            self._check_generation(str(task[0]), given)
        return super().generate_until(requests, disable_tqdm)

    def _check_generation(self, task: str, given: dict[str, Any]) -> None:
        where = f"--tasks {task}, --gen_kwargs"
        for name in given:
            if name in SET_HERE:
                raise UserError(name, "leave it out", value=given[name], why="set by the harness", where=where)
            if name in ALONE and given[name] not in (1, None):
                raise UserError(
                    name,
                    "leave it out",
                    value=given[name],
                    why="a compressed cache generates only one answer",
                    where=where,
                )
        until = given.get("until") or []
        if not all(isinstance(stop, str) for stop in (until if isinstance(until, list) else [until])):
            raise UserError("until", "choose a text, or a list of texts", value=until, where=where)
        try:
            longest = normalize_gen_kwargs(given, self.max_gen_toks)["max_gen_toks"]
        except (TypeError, ValueError) as error:
            raise UserError(
                "--gen_kwargs",
                "set max_gen_toks and temperature to numbers",
                value=given,
                why=str(error),
                where=f"--tasks {task}",
            ) from error
        if not 0 < longest < self.max_length:
            raise UserError(
                "max_gen_toks",
                f"choose 1 to {self.max_length - 1}",
                value=longest,
                why=f"the model's window of {self.max_length} tokens must also hold the context",
                where=where,
            )

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Generate as HFLM does, with the cache: context [1, tokens] -> context and new tokens [1, *].

        An empty context is replaced by HFLM's prefix token, as in log-likelihoods; this token is not returned.
        """
        empty = context.shape[1] == 0
        if empty:
            context = torch.tensor([[self.prefix_token_id]], device=self.device)
            options["attention_mask"] = torch.ones_like(context)
        with self.compressed_cache(context.shape[1]) as cache:
            chunks = {} if self.prefill_chunk is None else {"prefill_chunk_size": self.prefill_chunk}
            tokens = super()._model_generate(
                context, max_length + empty, stop, **{generate_argument(): cache}, **chunks, **options
            )
        return tokens[:, empty:]

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood in nats of each request's continuation, and whether it is the greedy continuation.

        A context is compressed once for all its continuations. If RoPE depends on the length (of the context with its
        continuation), the context is compressed once for all continuations with the same RoPE. Raises `UserError` for a
        continuation without tokens or longer than the model's window.
        """
        places: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        self._warn_of_single_tokens([continuation for _, _, continuation in requests])
        answers: dict[int, tuple[float, bool]] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        with steady(self.model), bar:
            for place, (texts, context, continuation) in enumerate(requests):
                shared = self._truncated(texts, context, continuation)
                rope = regime(self.model, len(shared) + len(continuation) - 1)
                places.setdefault((shared, rope), []).append(place)
            for (shared, _), sharing in places.items():
                scored = self._scored(shared, [requests[place][2] for place in sharing])
                for place, answer in zip(sharing, scored, strict=True):
                    answers[place] = answer
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], answer)
                    bar.update()
        return [answers[place] for place in range(len(requests))]

    def _truncated(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """Cut the context from the left, so that all but the continuation's last token fit the model's window."""
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                "continuation",
                f"give 1 to {self.max_length} tokens (the model's window)",
                value=texts[1],
                why=f"it has {len(continuation)} tokens after its context",
            )
        whole = (context + continuation)[-(self.max_length + 1) :]
        if len(whole) < len(context) + len(continuation):
            lost = len(context) + len(continuation) - len(whole)
            logger.warning("a context is too long: its first %d tokens are left out", lost)
        return tuple(whole[: -len(continuation)])

    def _warn_of_single_tokens(self, continuations: Sequence[list[int]]) -> None:
        single = sum(len(continuation) == 1 for continuation in continuations)
        if single and self.setting.method is not None:
            logger.warning(
                "%d of %d continuations are a single token: the context's forward pass predicts it before eviction, "
                "so these scores equal the full cache's scores for every method and budget",
                single,
                len(continuations),
            )

    @torch.no_grad()
    def _scored(self, context: Sequence[int], continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after `context`, and whether greedy decoding generates it.

        The context is prefilled and compressed once; the continuations are the rows of a batch.
        """
        length, longest = len(context), max(map(len, continuations)) - 1
        ids = torch.tensor(context, device=self.device)
        answers = []
        with attached(self.model, self.attention or own_backend(self.model)), spanning(self.model, length + longest):
            scorers = self.setting.scorers(length)
            prompt = prefill(self.model, ids, self.setting.window, self.prefill_chunk, scorers)
            kept = prompt.kept(self.setting)
            self._count(kept, length)
            together = max(1, LOGITS // ((longest + 1) * prompt.logits.nbytes))
            for start in range(0, len(continuations), together):
                part = [torch.tensor(tokens, device=self.device) for tokens in continuations[start : start + together]]
                logits = prompt.logits.expand(len(part), 1, -1)
                if longest:
                    given = pad_sequence([tokens[:-1] for tokens in part], batch_first=True)  # padding is not attended
                    cache = decode_cache(prompt, [kept] * len(part), longest)
                    logits = torch.cat([logits, forward_given(self.model, given, len(part), cache, length)], 1)
                for row, tokens in zip(logits.log_softmax(-1), part, strict=True):
                    predicted = row[: len(tokens)]
                    likelihood = predicted.gather(1, tokens[:, None]).sum().item()
                    answers.append((likelihood, bool((predicted.argmax(-1) == tokens).all())))
        return answers

    def _count(self, kept: Kept, length: int) -> None:
        """Record how much of a context of `length` tokens was kept."""
        heads = list(chain.from_iterable(counts(kept))) or [length]  # all layers may have sliding windows
        self.realised.append(sum(heads) / len(heads))
        self.kept_whole += min(heads) == length

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        names = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise UserError(
            "--tasks",
            "choose tasks of another output type",
            value=names,
            why="rolling log-likelihood has no context to compress",
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return HFLM's info with the method, the budget and the tokens kept, for `results["config"]`."""
        return super().get_model_info() | {
            "method": self.method_in_full,
            "budget": written(self.setting.budget),
            "contexts": len(self.realised),
            "contexts_kept_whole": self.kept_whole,
            "realised_budget": self.realised_budget,
        }

    @property
    def realised_budget(self) -> float | None:
        """Mean number of tokens kept per layer and KV head, over all contexts."""
        return sum(self.realised) / len(self.realised) if self.realised else None

    @property
    def summary(self) -> str:
        """A sentence for readers of the scores that says how many tokens were kept."""
        kept = "–" if self.realised_budget is None else f"{self.realised_budget:.1f}"
        return f"{len(self.realised)} contexts, {self.kept_whole} of them whole, {kept} tokens kept on average"
