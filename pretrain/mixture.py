"""Which crop sizes and how large a batch each step of a stage has: one pair throughout, or a mixture drawn by ratio.

A step's draw is a function of seed and step, and the samples before it are a sum, so that a run can be taken up at
any step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pretrain.config import StageConfig

_PURPOSE = 0x6D6978  # of the randomness


@dataclass(frozen=True)
class Plan:
    """The steps of a stage.

    variants  the stage as it is with each of its crop sizes
    choice    (steps,) which variant a step has
    sizes     (steps,) samples of its global batch
    starts    (steps + 1,) samples before it
    """

    variants: list[StageConfig]
    choice: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray

    def variant(self, step: int) -> StageConfig:
        """The stage as step `step` has it."""
        return self.variants[self.choice[step]]


def plan(stage: StageConfig, seed: int) -> Plan:
    """Sizes of every step. A pair with more pixels has a smaller batch, so that memory stays what it is without it."""
    if not stage.crops.mixture:
        variants, ratios = [stage], np.ones(1)
    else:
        variants = [_with(stage, pair) for pair in stage.crops.mixture]
        ratios = np.array([pair.ratio for pair in stage.crops.mixture], float)
    draws = np.random.Generator(np.random.Philox(key=[seed, _PURPOSE])).random(stage.steps)
    choice = np.searchsorted(np.cumsum(ratios / ratios.sum()), draws, side="right").clip(max=len(variants) - 1)
    batch = np.array([_batch(stage, variant) for variant in variants])
    sizes = batch[choice]
    return Plan(variants, choice, sizes, np.concatenate([[0], np.cumsum(sizes)]))


def _with(stage: StageConfig, pair) -> StageConfig:
    crops = replace(stage.crops, global_size=pair.global_size, local_size=pair.local_size, mixture=[])
    gram = replace(stage.gram, size=pair.gram_size or stage.gram.size)
    return replace(stage, crops=crops, gram=gram)


def _batch(stage: StageConfig, variant: StageConfig) -> int:
    return max(1, min(stage.batch_size, int(stage.batch_size * _pixels(stage) / _pixels(variant))))


def _pixels(stage: StageConfig) -> int:
    """Pixels that the student sees of one sample."""
    return 2 * stage.crops.global_size**2 + stage.crops.local_number * stage.crops.local_size**2
