"""The cost of absent sequences: a training step with two of four sequences present, by one with all four.

    python benchmarks/sequences.py [--width 192] [--depth 6] [--batch 4] [--rounds 5]

The two take turns in one process, on the same batch; time is the process's own on a CPU, the device's on a GPU, the
median of the rounds. A step is views, both networks, losses, gradients, optimizer and moving average. Memory is what
the student keeps between forward and backward on a CPU, the step's peak beyond weights and optimizer on a GPU.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from meddap import console
from meddap.settings import merge
from pretrain import build, checks, distillation, optim
from pretrain.config import Config
from pretrain.data import views
from pretrain.data.micro_batch import micro_batches
from pretrain.data.stream import Batch
from pretrain.planning.peak_memory import batch_of
from pretrain.runtime.device import pick_device

NAMES = ["t1", "t1c", "t2", "flair"]
PIXELS = 160


@dataclass
class Arms:
    """Student, teacher and batches of one benchmark."""

    config: Config
    device: torch.device
    batch: Batch

    def __post_init__(self) -> None:
        self.stage = checks.stage(self.config, "adapt")
        self.student, self.teacher = build.student_and_teacher(self.config, self.device)
        self.optimizer = build.optimizer(self.stage, self.student, self.config.model.depth)
        self.now = {name: float(values[0]) for name, values in build.schedules(self.stage).items()}
        self.settings = build.view_settings(self.stage, self.config.intensity, NAMES)

    def step(self, present: torch.Tensor) -> None:
        """One whole training step with these sequences."""
        batch = Batch(**{**vars(self.batch), "present": present})
        crops = views.make(batch, self.settings, seed=0)
        masks = build.masks(self.stage, self.config, batch, self.settings.global_size)
        draws = build.draws(self.config, self.stage, batch, 0)
        whole = micro_batches(crops, masks, draws, [(len(present),)])
        distillation.backward(self.student, self.teacher, whole, build.step_weights(self.stage, self.now))
        optim.set_step(self.optimizer, lr=1e-4, weight_decay=0.04, freeze_last_layer=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        optim.update_teacher(self.teacher, self.student, 0.99)


def arms_of(width: int, depth: int, batch: int) -> Arms:
    """A model and a batch of random slices."""
    given = {
        "name": "bench",
        "data": {"root": "none", "sequences": NAMES},
        "model": {"patch_size": 14, "embed_dim": width, "depth": depth, "num_heads": width // 64, "sequences": NAMES},
        # as much beside the backbone as 65,536 prototypes are beside a ViT-B
        "dino_head": {"prototypes": 1024, "hidden_dim": 512},
        "ibot_head": {"prototypes": 1024, "hidden_dim": 512},
        "stages": {
            "adapt": {
                "steps": 1,
                "crops": {"global_size": 98, "local_size": 56, "local_number": 4},
                "masks": {"sequence_probability": 1.0},
            }
        },
    }
    device = pick_device("auto")
    return Arms(merge(Config, ("bench", given)), device, batch_of(batch, len(NAMES), PIXELS, device))


def present_of(batch: int, count: int) -> torch.Tensor:
    """(batch, 4): every sample has `count` sequences, which ones turns from sample to sample."""
    place = (torch.arange(4).unsqueeze(0) + torch.arange(batch).unsqueeze(1)) % 4
    return place < count


def measure(arms: Arms, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds and bytes of a step with two and with four sequences, medians of rounds in which they take turns."""
    batch = len(arms.batch.sample)
    found: dict[str, list[tuple[float, int]]] = {"two": [], "four": []}
    for count in range(rounds + 1):
        for name, sequences in (("two", 2), ("four", 4)):
            taken = _timed(arms, present_of(batch, sequences))
            if count:  # the first round warms up
                found[name].append(taken)
    return {name: tuple(np.median(each, axis=0)) for name, each in found.items()}


def _timed(arms: Arms, present: torch.Tensor) -> tuple[float, int]:
    if arms.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        arms.step(present)
        torch.cuda.synchronize()
        return time.perf_counter() - began, torch.cuda.max_memory_allocated() - before
    began = time.process_time()
    arms.step(present)
    return time.process_time() - began, kept_bytes(arms, present)


def kept_bytes(arms: Arms, present: torch.Tensor) -> int:
    """Bytes that a step keeps between forward and backward, the weights left out."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in arms.student.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        arms.step(present)
    return sum(size for place, size in kept.items() if place not in weights)


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = console.parser("A step with two of four sequences present, by one with all four.")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    found = measure(arms_of(options.width, options.depth, options.batch), options.rounds)
    (seconds, size), (all_seconds, all_size) = found["two"], found["four"]
    print(f"{'':24}{'two of four':>14}{'all four':>14}{'ratio':>8}  wanted")
    print(f"{'seconds of a step':24}{seconds:14.3f}{all_seconds:14.3f}{seconds / all_seconds:8.2f}  < 0.6")
    print(f"{'megabytes of a step':24}{size / 1e6:14.1f}{all_size / 1e6:14.1f}{size / all_size:8.2f}  < 0.6")
    return 0


if __name__ == "__main__":
    console.launch(main)
