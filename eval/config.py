"""What a probe does: data, images, features, probes and the choices that validation patients make."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class StrideConfig:
    """Every n-th slice of a series is used."""

    train: int = 3
    val: int = 3
    test: int = 2


@dataclass
class KnnConfig:
    k: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    temperature: float = 0.07


@dataclass
class LinearConfig:
    l2: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    steps: int = 60  # of L-BFGS


@dataclass
class SegmentationConfig:
    cells: int = 4  # output pixels per patch and axis: the head draws finer than a patch
    lr: list[float] = field(default_factory=lambda: [1e-3, 4e-3])
    epochs: int = 8
    batch_size: int = 32  # slices
    weight_decay: float = 1e-3
    thresholds: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


@dataclass
class TaskConfig:
    data: str = MISSING  # folder with dataset.json
    name: str = "organs"
    size: int = 128  # pixels to which a square around the body is resized; a multiple of the patch size
    blocks: list[int] = field(default_factory=lambda: [-2, -1])  # whose patch features are read, counted from the end
    organs: dict[str, int] = field(default_factory=dict)  # name → label value; empty takes those of dataset.json
    min_pixels: int = 10  # an organ with fewer in a slice does not count as present or absent there
    stride: StrideConfig = field(default_factory=StrideConfig)
    probes: list[str] = field(default_factory=lambda: ["knn", "linear", "segmentation"])
    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    draws: int = 2000  # of the bootstrap
    seed: int = 0
    like: str | None = None  # checkpoint whose architecture `--checkpoint random` takes
    pictures: int = 4  # test slices shown in the report
    batch_size: int = 32  # slices per forward pass
    bf16: bool = True  # autocast where the device multiplies it in hardware
