"""Which crop sizes each step of a stage has: one pair throughout, or a mixture drawn by ratio.

A step's draw is a function of seed and step, so that a run can be taken up at any step.

The batch is the same at every size, as in the references: the learning rate, Sinkhorn's balance, KoLeo's neighbours and
the teacher's momentum were all chosen for that many images. What a pair with more pixels needs beyond the memory of the
stage's own sizes it gets in time: its batch goes through the student in more parts (`Plan.scales`), so that such a step
takes longer in proportion to its pixels. What is held for a whole batch still grows with them: its crops, and the
teacher's logits of all masked patches, which Sinkhorn balances together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from pretrain.config import StageConfig

_PURPOSE = 0x6D6978  # of the randomness


@dataclass(frozen=True)
class Plan:
    """The steps of a stage.

    variants  the stage as it is with each of its crop sizes
    choice    (steps,) which variant a step has
    scales    pixels of a sample in each variant by those that it has in the stage's own crop sizes
    sizes     (steps,) samples of its global batch: the stage's batch_size throughout
    starts    (steps + 1,) samples before it
    """

    variants: list[StageConfig]
    choice: np.ndarray
    scales: list[Fraction]
    sizes: np.ndarray
    starts: np.ndarray

    def variant(self, step: int) -> StageConfig:
        """The stage as step `step` has it."""
        return self.variants[self.choice[step]]


def plan(stage: StageConfig, seed: int) -> Plan:
    """Crop sizes and batch of every step."""
    if not stage.crops.mixture:
        variants, ratios = [stage], np.ones(1)
    else:
        variants = [_with(stage, pair) for pair in stage.crops.mixture]
        ratios = np.array([pair.ratio for pair in stage.crops.mixture], float)
    draws = np.random.Generator(np.random.Philox(key=[seed, _PURPOSE])).random(stage.steps)
    choice = np.searchsorted(np.cumsum(ratios / ratios.sum()), draws, side="right").clip(max=len(variants) - 1)
    scales = [Fraction(_pixels(variant), _pixels(stage)) for variant in variants]
    starts = stage.batch_size * np.arange(stage.steps + 1)
    return Plan(variants, choice, scales, np.diff(starts), starts)


def _with(stage: StageConfig, pair) -> StageConfig:
    crops = replace(stage.crops, global_size=pair.global_size, local_size=pair.local_size, mixture=[])
    gram = replace(stage.gram, size=pair.gram_size or stage.gram.size)
    return replace(stage, crops=crops, gram=gram)


def _pixels(stage: StageConfig) -> int:
    """Pixels that the student sees of one sample."""
    return 2 * stage.crops.global_size**2 + stage.crops.local_number * stage.crops.local_size**2
