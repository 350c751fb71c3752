"""SnapKV's scorer, which makes jobs fail depending on the model's name."""

import os
import signal
import time
from dataclasses import dataclass

from baselines import snapkv
from compresskv.context import Context
from compresskv.eviction import LayerPrefill, LayerScores, Scorer


@dataclass(frozen=True)
class Slow:
    """Wait at each prompt, so that a job can be interrupted in the middle."""

    scorer: snapkv.SnapKVScorer

    @property
    def window(self) -> int:
        return self.scorer.window

    def __call__(self, layer: LayerPrefill) -> LayerScores:
        if layer.index == 0:
            time.sleep(0.5)
        return self.scorer(layer)


def scorer(context: Context) -> Scorer:
    if context.model == "raises":
        raise ValueError("sabotaged")
    if context.model == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if context.model == "wiped-out":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    plain = snapkv.scorer(context)
    return Slow(plain) if context.model.startswith("slow") else plain
