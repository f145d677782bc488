"""What may be set when sharding, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SplitConfig:
    """Shares of the patients; a patient's split is a function of the hashed id."""

    train: float = 0.6
    val: float = 0.2
    test: float = 0.2


@dataclass
class AirConfig:
    threshold_hu: float = -500.0  # above it a pixel is body
    min_body_fraction: float = 0.02  # of a slice's pixels; a slice with less is air and left out


@dataclass
class CtConfig:
    workers: int = 1  # processes
    samples_per_shard: int = 1000
    split: SplitConfig = field(default_factory=SplitConfig)
    air: AirConfig = field(default_factory=AirConfig)
    min_slices: int = 3  # a series with fewer is no volume
    max_gap: float = 1.2  # largest distance of neighbouring DICOM slices, in medians; more means slices are missing
    max_tilt_degrees: float = 1.0  # of the gantry
    patient_from: str = "first_folder"  # whose name is the patient of a NIfTI: first_folder | parent_folder | file
    labels: dict[str, str] = field(default_factory=dict)  # label value → name


# What changes only speed: a second start may differ in it.
MACHINE_KEYS = ("workers",)
