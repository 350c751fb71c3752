"""kvpress's side of `bench.kvpress` and `bench.board`: runs settings one by one, as kvpress's pipeline does.

It runs in a separate environment (kvpress-constraints.txt), because kvpress 0.5.5 needs an older transformers, so it
imports nothing from this project. It reads and writes lines of JSON. The first input line is the job; its answer has
the versions in use. Every other input line is a prompt: its token ids, and the number of ids in its context (null:
all). Its answer has one entry per setting: seconds, generated tokens, and the number of tokens kept in each layer (mean
over heads).

A setting is a press of kvpress (null: none), its fields, and a number or share of tokens to keep.
"""

import json
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import kvpress
import torch
from kvpress import BasePress
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging


def press_for(name: str | None, fields: dict[str, Any], keep: float | None, length: int) -> BasePress | None:
    """Return the press that keeps `keep` of `length` tokens in a layer on average; None if it would keep all.

    The field `press`, if given, is another press.
    """
    if name is None or keep is None:
        return None
    budget = keep if isinstance(keep, int) else int(keep * length + 1e-6)
    if budget >= length:
        return None
    given = dict(fields)
    if "press" in given:
        base, of_base = given["press"]
        given["press"] = press_for(base, of_base, budget, length)
    press = getattr(kvpress, name)(**given)
    # A press takes the share of tokens to drop. Some presses round the remainder down, others to the nearest. An
    # additional hundredth of a token makes both keep the budget despite rounding errors of the division.
    press.compression_ratio = 1 - (budget + 0.01) / length
    return press


@torch.no_grad()
def generate(
    model: PreTrainedModel, ids: torch.Tensor, context: int | None, press: BasePress | None, new_tokens: int
) -> tuple[list[int], list[float]]:
    """Return greedy tokens and the tokens kept in each layer: the pipeline's `generate_answer` without early stopping.

    The pipeline prefills the context and then the question. If the prompt is not split, its last logits give the first
    token, which saves kvpress a forward pass.
    """
    cache, length = DynamicCache(), ids.shape[1] if context is None else context
    with press(model) if press else nullcontext():
        outputs = model(ids[:, :length], past_key_values=cache, logits_to_keep=1)
    kept = [cache.get_seq_length(layer) - masked(layer, model) for layer in range(len(cache))]
    positions = torch.arange(length, ids.shape[1] + 1, device=ids.device)[None]
    if length < ids.shape[1]:
        outputs = model(ids[:, length:], past_key_values=cache, position_ids=positions[:, :-1], logits_to_keep=1)
    tokens = [outputs.logits[0, -1].argmax()]
    for step in range(new_tokens - 1):
        outputs = model(tokens[-1][None, None], past_key_values=cache, position_ids=positions[:, -1:] + step)
        tokens.append(outputs.logits[0, -1].argmax())
    return torch.stack(tokens).tolist(), kept


def masked(layer: int, model: PreTrainedModel) -> float:
    """Return the tokens of a layer that AdaKV masks instead of dropping, as a mean over KV heads."""
    found = getattr(model.model.layers[layer].self_attn, "masked_key_indices", None)
    return 0 if found is None else len(found[2]) / model.config.num_key_value_heads


def answer(model: PreTrainedModel, job: dict[str, Any], prompt: list[int], context: int | None) -> list[dict[str, Any]]:
    """Run one prompt with every setting, each with a separate prefill."""
    ids = torch.tensor([prompt], device=model.device)
    length = len(prompt) if context is None else context
    answers = []
    for name, fields, keep in job["settings"]:
        press = press_for(name, fields, keep, length)
        # Only this press needs the attention weights; kvpress's other presses refuse to run with eager attention.
        model.set_attn_implementation("eager" if name == "ObservedAttentionPress" else "sdpa")
        started = time.perf_counter()
        tokens, kept = generate(model, ids, context, press, job["new_tokens"])
        answers.append({"seconds": time.perf_counter() - started, "tokens": tokens, "kept": kept})
    return answers


def main() -> None:
    logging.disable_progress_bar()
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    )
    model = model.to(job["device"]).eval()
    print(json.dumps({name: version(name) for name in ("kvpress", "transformers", "torch")}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, job, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
