"""`make parity-kvpress`: compare the kept tokens and answers of kvpress's presses here and in kvpress itself.

Both sides run the default model in float32 on needle prompts of about 1,000 tokens, at kvpress's ratios. The budget
here is the mean number of tokens that kvpress keeps in a head. Prints one line per press and ratio: how many sets of a
layer and KV head are the same, the share of tokens that both keep, and how many answers are the same.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.kvpress import ENVIRONMENT, SIDE
from bench.main import prompts
from bench.settings import default_model
from compresskv.engine.attention import attached
from compresskv.engine.decode import Stopping
from compresskv.engine.generation import generate
from compresskv.engine.prefill import prefill
from compresskv.engine.setting import Setting
from compresskv.models import LoadedModel
from compresskv.selection import Kept
from evals.compose import job
from evals.running.methods import build_method

RATIOS = [0.5, 0.75]
NEW_TOKENS = 16

EXPECTED = ["ExpectedAttentionPress", {"use_vnorm": False}]
PRESSES: dict[str, tuple[str, dict[str, Any]]] = {
    "cap": ("CapPress", {}),
    "compactor": ("CompactorPress", {}),
    "cur": ("CURPress", {}),
    "expected_attention": ("ExpectedAttentionPress", {}),
    "keydiff": ("KeyDiffPress", {}),
    "knorm": ("KnormPress", {}),
    "lagkv": ("LagKVPress", {}),
    "leverage_score": ("LeverageScorePress", {}),
    "non_causal_attn": ("NonCausalAttnPress", {}),
    "observed_attention": ("ObservedAttentionPress", {}),
    "pyramidkv": ("PyramidKVPress", {}),
    "random": ("RandomPress", {}),
    "snapkv": ("SnapKVPress", {}),
    "streaming_llm": ("StreamingLLMPress", {}),
    "tova": ("TOVAPress", {}),
    "criticalkv": ("CriticalKVPress", {"press": EXPECTED}),
    "adakv_compactor": ("AdaKVPress", {"press": ["CompactorPress", {}]}),
    "adakv_snapkv": ("AdaKVPress", {"press": ["SnapKVPress", {}]}),
    "adakv": ("AdaKVPress", {"press": ["ExpectedAttentionPress", {"epsilon": 0.01}]}),
    "critical_adakv": ("CriticalAdaKVPress", {"press": EXPECTED}),
    "block": ("BlockPress", {"press": ["KeyDiffPress", {}]}),
    "chunk": ("ChunkPress", {"press": ["ExpectedAttentionPress", {}]}),
    "chunkkv": ("ChunkKVPress", {"press": ["SnapKVPress", {}]}),
    "entropy_gated_chunkkv": ("EntropyGatedChunkKVPress", {"press": ["SnapKVPress", {}]}),
}
"""The methods of conf/method/kvpress, and the equivalent presses of kvpress with their fields."""


@dataclass
class Agreement:
    """Counts for one press at one ratio, over all prompts: equal sets, equal answers and tokens kept."""

    sets: int = 0
    same: int = 0
    tokens: int = 0
    both: int = 0
    answers: int = 0
    equal: int = 0
    ours: float = 0.0
    theirs: float = 0.0

    def add(self, ours: Kept, theirs: list[list[list[int]]], equal: bool) -> None:
        for mine, other in zip(ours, theirs, strict=True):
            for head, positions in zip(mine, other, strict=True):
                first, second = set(head.tolist()), set(positions)
                self.sets += 1
                self.same += first == second
                self.tokens += len(first | second)
                self.both += len(first & second)
                self.ours += len(first)
                self.theirs += len(second)
        self.answers += 1
        self.equal += equal

    def __str__(self) -> str:
        return (
            f"sets {self.same / self.sets:6.1%}, tokens {self.both / self.tokens:7.2%}, answers {self.equal} of "
            f"{self.answers}; kept {self.ours / self.sets:.2f}, kvpress {self.theirs / self.sets:.2f}"
        )


@contextmanager
def kvpress_side(model: LoadedModel, settings: list[Any]) -> Iterator[Callable[[torch.Tensor], list[Any]]]:
    """Provide a function that runs a prompt with `settings` in kvpress, in kvpress's environment."""
    description = {
        "model": model.model.name_or_path,
        "threads": torch.get_num_threads(),
        "settings": settings,
        "new_tokens": NEW_TOKENS,
    }
    command = [str(ENVIRONMENT / "bin" / "python"), "-I", str(SIDE.with_name("parity_side.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(question: Any) -> Any:
            print(json.dumps(question), file=process.stdin, flush=True)
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                raise SystemExit("parity_side.py failed: its error is above")
            return json.loads(line)

        print(", ".join(f"{name} {version}" for name, version in ask(description).items()), flush=True)
        yield lambda ids: ask(ids.tolist())


def parity(model: LoadedModel, names: list[str], lengths: list[int]) -> dict[tuple[str, float], Agreement]:
    """Measure and print the agreement of each press at each ratio."""
    cases = [(name, ratio) for name in names for ratio in RATIOS]
    found = {case: Agreement() for case in cases}
    methods = {name: build_method(model, job(f"method=kvpress/{name}")) for name in names}
    sides = [[*PRESSES[name], ratio] for name, ratio in cases]
    with kvpress_side(model, sides) as run_theirs, attached(model.model):
        for ids in prompts(model, lengths):
            theirs = run_theirs(ids)
            settings = [Setting(methods[name], max(1, int(len(ids) * (1 - ratio)))) for name, ratio in cases]
            scorers = [setting.method.scorer for setting in settings if setting.method]
            whole = prefill(model.model, ids, max(setting.window for setting in settings), scorers=scorers)
            answers = generate(model.model, ids, settings, Stopping(NEW_TOKENS))
            for case, setting, answer, other in zip(cases, settings, answers, theirs, strict=True):
                found[case].add(whole.kept(setting), other["kept"], answer.tokens == other["tokens"])
    for (name, ratio), agreement in found.items():
        print(f"{name:22} {ratio:.0%} dropped: {agreement}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--press", action="append", choices=PRESSES, help="one method of conf/method/kvpress; all")
    parser.add_argument("--prompts", type=int, default=3)
    options = parser.parse_args()
    if not (ENVIRONMENT / ".ready").exists():
        raise SystemExit("kvpress is not installed: run `make parity-kvpress`")
    parity(default_model("model.dtype=float32"), options.press or list(PRESSES), [1000] * options.prompts)


if __name__ == "__main__":
    main()
