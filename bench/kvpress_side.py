"""The other side of `bench.kvpress`: settings one by one with NVIDIA's kvpress, used as its own pipeline uses it.

Runs in a separate environment (kvpress-constraints.txt), because kvpress 0.5.5 needs an older transformers; so it
imports nothing of this project. It reads and writes lines of JSON: the first is the job, every other one the token ids
of a prompt. The answer to the job has the versions in use. The answer to a prompt has one entry per setting: seconds,
generated tokens, and the number of kept tokens in each layer.
"""

import json
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch
from kvpress import BasePress, PyramidKVPress, SnapKVPress, StreamingLLMPress
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging


def press_for(job: dict[str, Any], method: str, budget: int | None, length: int) -> BasePress | None:
    """What keeps `budget` of `length` prompt tokens, a layer's mean; None keeps them all."""
    if budget is None or budget >= length:
        return None
    # A press takes the share of tokens to drop. Some presses round the rest down, others to the nearest; with an
    # additional hundredth of a token, both keep the budget despite rounding errors of the division.
    ratio = 1 - (budget + 0.01) / length
    if method == "streaming_llm":
        return StreamingLLMPress(ratio, n_sink=job["sinks"])
    kind = {"snapkv": SnapKVPress, "pyramidkv": PyramidKVPress}[method]
    return kind(ratio, window_size=job["window"], kernel_size=job["kernel"])


@torch.no_grad()
def generate(
    model: PreTrainedModel, ids: torch.Tensor, press: BasePress | None, new_tokens: int
) -> tuple[list[int], list[int]]:
    """Greedy tokens, and tokens kept in each layer: the pipeline's `generate_answer`, but without stopping early.

    The pipeline prefills the context and then the question. Here the prompt is not split, and its last logits give the
    first token, which saves kvpress a forward pass.
    """
    cache = DynamicCache()
    with press(model) if press else nullcontext():
        outputs = model(ids, past_key_values=cache, logits_to_keep=1)
    kept = [cache.get_seq_length(layer) for layer in range(len(cache))]
    positions = torch.full((1, 1), ids.shape[1], device=ids.device)
    tokens = [outputs.logits[0, -1].argmax()]
    for step in range(new_tokens - 1):
        outputs = model(tokens[-1][None, None], past_key_values=cache, position_ids=positions + step)
        tokens.append(outputs.logits[0, -1].argmax())
    return torch.stack(tokens).tolist(), kept


def answer(model: PreTrainedModel, job: dict[str, Any], prompt: list[int]) -> list[dict[str, Any]]:
    """One prompt under every setting, each with a separate prefill."""
    ids = torch.tensor([prompt], device=model.device)
    answers = []
    for method, budget in job["settings"]:
        started = time.perf_counter()
        tokens, kept = generate(model, ids, press_for(job, method, budget, len(prompt)), job["new_tokens"])
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
        print(json.dumps(answer(model, job, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
