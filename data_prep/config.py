"""The settings of sharding, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class SplitConfig:
    """Shares of the patients; a patient's split is a function of the hashed id."""

    train: float = 0.6
    val: float = 0.2
    test: float = 0.2


@dataclass
class GeometryConfig:
    """Treatment of grids that are not axial."""

    tilt: Literal["correct", "refuse"] = "correct"  # gantry tilt: resampled on an axial grid
    max_tilt_degrees: float = 1.0  # up to here slices count as not tilted
    planes: Literal["reformat", "refuse"] = "refuse"  # thick sagittal and coronal slices
    oblique: Literal["reformat", "refuse"] = "refuse"
    max_oblique_degrees: float = 20.0  # up to here slices count as axial and are not resampled


@dataclass
class StackConfig:
    """Treatment of DICOM slices that are not evenly spaced, and of images that were not acquired."""

    uneven: Literal["split", "refuse"] = "split"  # at a gap or a change of spacing
    max_gap: float = 1.2  # ratio of neighbouring distances that still counts as even
    derived: Literal["keep", "refuse"] = "refuse"  # projections, reformats, perfusion maps …
    burned_in: Literal["keep", "refuse"] = "refuse"  # BurnedInAnnotation is YES: text may be in the pixels


@dataclass
class GridConfig:
    """Grid of the slices that are written; as acquired unless set."""

    in_plane_mm: float | None = None  # resampled to this spacing, antialiased
    size: int | None = None  # rows and columns, cropped or padded around the centre


@dataclass
class LimitConfig:
    """Limits beyond which a series is left out."""

    volume_gb: float = 4.0  # voxels in int16
    minutes: float = 20.0


@dataclass
class PrepConfig:
    """Settings that CT and MRI share."""

    workers: int = 1  # processes
    part: str = "1/1"  # this start's share of the patients, e.g. 3/64
    samples_per_shard: int = 1000
    min_slices: int = 3  # a stack with fewer is left out
    # what names the patient of a file whose header does not; BIDS names take precedence
    patient_from: Literal["first_folder", "parent_folder", "file"] = "first_folder"
    labels: dict[str, str] = field(default_factory=dict)  # label value → name
    label_maps: dict[str, str] = field(default_factory=dict)  # pattern of an image's path → path of its label map
    # label values of voxels that nobody annotated: neither a label nor background. One that `labels` names is a label;
    # one that `labels` calls "ignore" is ignored too
    ignore: list[int] = field(default_factory=lambda: [255])
    # a label map on another grid than its image: placed by its affine and noted, or refused
    label_grid: Literal["place", "refuse"] = "place"
    max_labels_outside: float = 0.01  # share of a map's label voxels that may lie outside its image
    # for the CSV of --labels: the columns that are labels (empty: all), and rows that match no input
    label_columns: list[str] = field(default_factory=list)
    unknown_labels: Literal["refuse", "ignore"] = "refuse"
    keep_year: bool = False  # the year of acquisition
    split: SplitConfig = field(default_factory=SplitConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    stacks: StackConfig = field(default_factory=StackConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)


@dataclass
class AirConfig:
    """Which slices of a CT hold the body."""

    threshold_hu: float = -500.0  # above it a pixel is body
    min_body_fraction: float = 0.02  # of a slice's pixels; a slice with less is air and left out


@dataclass
class CtConfig(PrepConfig):
    """Settings of CT."""

    air: AirConfig = field(default_factory=AirConfig)


@dataclass
class MriConfig(PrepConfig):
    """Settings of MRI."""

    # pattern of a file's path below the input, or of a series description → sequence; overrides any guess
    sequences: dict[str, str] = field(default_factory=dict)
    # which files are one study: BIDS entities, else the common start of their names or the folder
    study_from: Literal["auto", "folder", "name"] = "auto"
    reference: str = ""  # sequence whose grid the others get; empty: the thickest slices, then the finest pixels
    min_overlap: float = 0.5  # share of the reference grid that another sequence must cover
    min_foreground: float = 0.02  # of a slice's pixels in some sequence; a slice with less is left out


# Settings that change only speed: a second start may differ in them.
MACHINE_KEYS = ("workers", "limits")
