"""The steps that a GPU is measured by: which vision transformers, in which stage, in which ways."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import pretrain
from benchmarks.training_step import Arm
from pretrain.config import Config, StageConfig, load
from pretrain.planning import peak_memory

_CONFIGS = Path(pretrain.__file__).parent / "configs"
SIZES = {  # configuration, and what makes it smaller
    "ViT-S/16": ("meddinov3_vitb16.yaml", ["model.embed_dim=384", "model.num_heads=6"]),
    "ViT-B/16": ("meddinov3_vitb16.yaml", []),
    "ViT-L/16": ("dinov3_vitl16.yaml", []),
}
_HEAD = ("prototypes=128", "hidden_dim=32", "bottleneck_dim=16")
_TINY = ["model.embed_dim=64", "model.depth=2", "model.num_heads=2", "model.rope_rescale=null"]
_TINY += [f"{head}_head.{key}" for head in ("dino", "ibot") for key in _HEAD]
TARGETS = {"ViT-B/16": 0.50, "ViT-L/16": 0.55}  # of the bf16 matrix rate, stage 1


@dataclass(frozen=True)
class Case:
    """A step to be measured: which ViT, stage 1 to 3, compiled or not, by which attention."""

    size: str
    stage: int
    compiled: bool
    attention: str

    @property
    def target(self) -> float | None:
        return TARGETS.get(self.size) if self.stage == 1 and self.compiled else None


def cases() -> list[Case]:
    """All of them: the targets' first, then the rest of stage 1, then what has most to say for its time."""
    backends = ["sdpa", "xformers"] if importlib.util.find_spec("xformers") else ["sdpa"]
    every = [Case(*each) for each in itertools.product(SIZES, (1, 2, 3), (True, False), backends)]
    return sorted(every, key=lambda each: (each.target is None, each.stage != 1, each.compiled and each.stage != 1))


@dataclass(frozen=True)
class Scale:
    """How large everything is: as it is, or in miniature.

    images   of a step on one GPU
    least    seconds that a step is repeated for
    side, patients   of the slices that are loaded: pixels, and how many have 40 each
    matrix   side of the matrices whose products are measured; None: as large as they must be
    """

    overrides: tuple[str, ...] = ()
    images: int = 64
    least: float = 2.0
    side: int = 512
    patients: int = 6
    matrix: int | None = None

    def stage(self, config: Config, number: int) -> tuple[StageConfig, int]:
        """Stage `number` with its largest crops, and its micro-batches."""
        _, stage, accumulate = list(peak_memory.variants(config))[number - 1]
        if not self.overrides:
            return stage, accumulate
        crops = replace(stage.crops, global_size=48 if number == 3 else 32, local_size=16, local_number=2)
        return replace(stage, crops=crops, gram=replace(stage.gram, size=64)), accumulate


QUICK = Scale(tuple(_TINY), images=2, least=0.0, side=64, patients=1, matrix=128)


@dataclass
class Run:
    """One run: where, how large, and the time that it has."""

    device: torch.device
    scale: Scale
    seconds: float
    began: float = field(default_factory=time.monotonic)
    low: float = 0.0

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def config(self, case: Case) -> Config:
        """The configuration of a case."""
        file, smaller = SIZES[case.size]
        machine = [f"machine.compile={case.compiled}", f"machine.attention={case.attention}", "machine.recompute=false"]
        precision = "machine.precision=bf16"
        words = ["data.root=none", *smaller, *machine, precision, *self.scale.overrides]
        return load(_CONFIGS / file, words)

    def arm(self, case: Case) -> Arm:
        """The case's step, warm; of half as many images until it fits."""
        config = self.config(case)
        stage, accumulate = self.scale.stage(config, case.stage)
        images = self.scale.images
        while True:
            try:
                arm = Arm(config, stage, images, self.device, accumulate=accumulate, side=self.scale.side)
                for _ in range(2):
                    arm.step()
                return arm
            except torch.OutOfMemoryError:
                if images == 1:
                    raise
                images, arm = images // 2, None  # what it holds must go before there is another one
            release(self.device)


def release(device: torch.device) -> None:
    """Release the memory of the last case."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
