"""How well the time of one step foretells that of others, by counted operations and bytes.

    python benchmarks/foretold.py [--rounds 5]

The share of the matrix rate that the first step reaches gives the planned time of the others: another width, other
crops, another batch. Rates, the step that is known and the ones that are foretold take turns. Wanted: within a quarter.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.training_step import Arm
from meddap import console
from meddap.settings import merge
from pretrain import checks, plan
from pretrain.config import Config

# name → model, (global, local) crops, images; the first is the one that is known
SHAPES = {
    "192 × 6, crops 96/48, batch 8": ({"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}, (96, 48), 8),
    "384 × 4, crops 96/48, batch 6": ({"embed_dim": 384, "depth": 4, "num_heads": 6, "patch_size": 8}, (96, 48), 6),
    "192 × 6, crops 64/32, batch 24": ({"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}, (64, 32), 24),
}
_HEAD = {"prototypes": 4096, "hidden_dim": 512, "bottleneck_dim": 128}
_BASE = {
    "name": "foretold",
    "data": {"root": "none"},
    "dino_head": _HEAD,
    "ibot_head": _HEAD,
    "stages": {"adapt": {"steps": 1}},
    "machine": {"device": "cpu", "precision": "float32"},
}


def steps() -> list[Arm]:
    """The steps of SHAPES on the CPU."""
    made = []
    for model, (large, small), images in SHAPES.values():
        config = merge(Config, ("foretold", _BASE), ("model", {"model": model}))
        chosen = checks.stage(config, "adapt")
        crops = replace(chosen.crops, global_size=large, local_size=small, local_number=4)
        made.append(Arm(config, replace(chosen, crops=crops), images, torch.device("cpu"), side=128))
    return made


def measure(rounds: int) -> tuple[list[float], float]:
    """Return planned by measured seconds of each step but the first, medians, and the share that the first reached."""
    made, ratios, shares = steps(), [], []
    for arm in made:
        arm.step()
    for _ in range(rounds):
        here, times = plan.this_machine(), []
        for arm in made:
            began = time.perf_counter()
            arm.step()
            times.append(time.perf_counter() - began)
        known = plan.reached(made[0].counted, here, times[0])
        shares.append(known.mfu)
        ratios.append([plan.seconds(arm.counted, known).total / took for arm, took in zip(made[1:], times[1:])])
    return [statistics.median(each) for each in zip(*ratios)], statistics.median(shares)


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("How well the time of one step foretells that of others.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    ratios, share = measure(options.rounds)
    known, *others = SHAPES
    print(f"known: {known}, {share:.0%} of the matrix rate")
    print(f"{'planned by measured time':40}{'ratio':>6}  wanted")
    for name, ratio in zip(others, ratios):
        print(f"{name:40}{ratio:6.2f}  0.75 to 1.25")
    return 0


if __name__ == "__main__":
    console.launch(main)
