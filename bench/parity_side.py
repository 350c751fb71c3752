"""kvpress's side of `bench.parity`: runs NVIDIA's presses with their own hooks, under kvpress's transformers.

It runs in the environment of kvpress-constraints.txt and imports nothing from this project. It reads and writes lines
of JSON. The first input line is the job, every other one the token ids of a prompt. The answer to a prompt has one
entry per setting: the generated tokens, and the kept positions, [layer][KV head].
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import kvpress
import torch
from kvpress import BasePress, ScorerPress
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

MIX = torch.randint(1, 2**62, (4096,), generator=torch.Generator().manual_seed(0)) | 1


def press_for(name: str, fields: dict[str, Any], ratio: float) -> BasePress:
    """Return a press with these fields. The field `press` is again a name and fields.

    A random press is seeded with the layer's index.
    """
    given = dict(fields)
    if "press" in given:
        base, of_base = given["press"]
        given["press"] = press_for(base, of_base, ratio)
    press = getattr(kvpress, name)(**given)
    press.compression_ratio = ratio
    if isinstance(press, ScorerPress):
        score = press.score

        def seeded(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            torch.manual_seed(module.layer_idx)
            return score(module, *args, **kwargs)

        press.score = seeded
    return press


def marks(keys: Tensor) -> Tensor:
    """Return one number for each key [1, kv_heads, tokens, head_dim], from all its bits: [kv_heads, tokens], int64."""
    return (keys[0].contiguous().view(torch.int32).long() * MIX[: keys.shape[-1]]).sum(-1)


@torch.no_grad()
def answer(
    model: PreTrainedModel, ids: Tensor, press: BasePress, new_tokens: int
) -> tuple[list[int], list[list[list[int]]]]:
    """Return greedy tokens and kept positions. The prompt is not split into a context and a question."""
    kept: list[list[list[int]]] = []
    compress = press.compress

    def watched(module: Any, states: Tensor, keys: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        module.masked_key_indices = None
        before = marks(keys)
        compressed = compress(module, states, keys, *args)
        if module.masked_key_indices is not None:
            _, heads, masked = module.masked_key_indices
            there = torch.ones(before.shape, dtype=torch.bool)
            there[heads, masked] = False
            kept.append([head.nonzero().flatten().tolist() for head in there])
        else:
            place = [{mark: i for i, mark in enumerate(head)} for head in before.tolist()]
            assert all(len(head) == before.shape[1] for head in place)
            after = marks(compressed[0]).tolist()
            kept.append([sorted(place[h][mark] for mark in head) for h, head in enumerate(after)])
        return compressed

    press.compress = watched
    cache = DynamicCache()
    with press(model):
        outputs = model(ids, past_key_values=cache, logits_to_keep=1)
    positions = torch.full((1, 1), ids.shape[1])
    tokens = [outputs.logits[0, -1].argmax()]
    for step in range(new_tokens - 1):
        outputs = model(tokens[-1][None, None], past_key_values=cache, position_ids=positions + step)
        tokens.append(outputs.logits[0, -1].argmax())
    return torch.stack(tokens).tolist(), kept


def main() -> None:
    logging.disable_progress_bar()
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    print(json.dumps({name: version(name) for name in ("kvpress", "transformers", "torch")}), flush=True)
    for line in sys.stdin:
        ids = torch.tensor([json.loads(line)])
        answers = []
        for name, fields, ratio in job["settings"]:
            # Only this press needs the attention weights; kvpress's other presses refuse to run with eager attention.
            model.set_attn_implementation("eager" if name == "ObservedAttentionPress" else "sdpa")
            tokens, positions = answer(model, ids, press_for(name, fields, ratio), job["new_tokens"])
            answers.append({"tokens": tokens, "kept": positions})
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
