"""The settings of sharding, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from meddap.ranges import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Allowed


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
    # image files: the unit of the numbers in their header, where the header's own is wrong or missing
    units: Literal["header", "mm", "metre", "micron"] = "header"
    # NIfTI: which transform counts where sform and qform (or pixdim, whose lengths then count) disagree
    disagreeing: Literal["refuse", "sform", "qform"] = "refuse"
    # image files: how the axes run where the header does not say (NIfTI with sform_code and qform_code 0, ANALYZE, NRRD
    # without a space): to the right, front, head (ras) …
    unoriented: Literal["refuse", "ras", "las", "lps"] = "refuse"


@dataclass(unsafe_hash=True)  # so that what follows from it can be kept beside it; it is not changed once it is read
class StackConfig:
    """Treatment of DICOM slices that are not evenly spaced, and of images that were not acquired."""

    uneven: Literal["split", "refuse"] = "split"  # at a gap or a change of spacing
    # different slices at one place that no attribute tells apart: refused, or the n-th by number is of the n-th volume
    repeats: Literal["order", "refuse"] = "refuse"
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
    zip_gb: float = 100.0  # what a zip archive may unpack to
    minutes: float = 20.0


@dataclass
class PrepConfig:
    """Settings that CT and MRI share."""

    workers: int = 1  # processes
    part: str = "1/1"  # this start's share of the patients, e.g. 3/64
    samples_per_shard: int = 1000
    min_slices: int = 3  # a stack with fewer is left out
    # layout of a public collection, whose rules say what each file is: recognised (auto), none, or a layout's name
    layout: str = "auto"
    # what names the patient of a file whose header does not; BIDS names and layouts take precedence. auto: the first
    # folder from the top where the names differ and are not train, val, images … only; without one the file's name
    patient_from: Literal["auto", "first_folder", "parent_folder", "file"] = "auto"
    # what names the patient of a file whose header does not, before BIDS names, layouts and `patient_from`: a regular
    # expression of its path below the input, whose group is the patient
    patient: str = ""
    # DICOM: whether its PatientID names the patient, or its path as for image files (where all share one id)
    patient_id: Literal["header", "path"] = "header"
    strict: bool = False  # whether what would be a warning is an error, before anything is written where it can be told
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
    license: str | None = None  # of the images, e.g. CC-BY-4.0: in dataset.json and in a trained model's card
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

    # a volume whose values speak against HU (air, soft tissue, range) is refused; trust takes it and notes the evidence
    values: Literal["check", "trust"] = "check"
    air: AirConfig = field(default_factory=AirConfig)


@dataclass
class MriConfig(PrepConfig):
    """Settings of MRI."""

    # pattern of a file's path below the input, or of a series description → sequence; overrides any guess
    sequences: dict[str, str] = field(default_factory=dict)
    # which files are one study: BIDS entities, else the common start of their names or the folder
    study_from: Literal["auto", "folder", "name"] = "auto"
    # scouts and surveys, by their description or their geometry; those that are kept never give the grid
    localizers: Literal["refuse", "keep"] = "refuse"
    reference: str = ""  # sequence whose grid the others get; empty: the thickest slices, then the finest pixels
    # whether series of one study with other FrameOfReferenceUIDs are refused; ignore: their affines are trusted, where
    # de-identification gave every series a new one
    frame_of_reference: Literal["check", "ignore"] = "check"
    min_overlap: float = 0.5  # share of the reference grid that another sequence must cover
    min_foreground: float = 0.02  # of a slice's pixels in some sequence; a slice with less is left out


@dataclass
class RadiographConfig:
    """Which DICOM images are taken as pictures, and how their pixels are shown."""

    modalities: list[str] = field(default_factory=lambda: ["CR", "DX", "IO", "MG", "PX", "RF", "XA"])
    # header: the first window or VOI LUT of the header gives the range, where there is one; range: `range` does
    window: Literal["header", "range"] = "header"
    # what says whether 0 is white where PhotometricInterpretation and PresentationLUTShape contradict each other
    polarity: Literal["refuse", "photometric", "shape"] = "refuse"
    for_processing: Literal["keep", "refuse"] = "refuse"  # raw images of a detector, not meant to be shown


@dataclass
class PetConfig:
    """PET series, which are volumes: their axial slices are the sequence pet."""

    # suv: standardised uptake by body weight, from the header, and refused where it does not say enough; stored: the
    # stored values, scaled as MR is
    values: Literal["suv", "stored"] = "suv"
    top: float = 10.0  # SUV that becomes 1; values up to 2.5 times that are kept
    body_suv: float = 0.1  # above it a pixel is body
    min_body_fraction: float = 0.02  # of a slice's pixels; a slice with less is air and left out


@dataclass
class TileConfig:
    """Large pictures (electron micrographs, whole slides) cut into tiles, which are slices of one series, row by row.

    Whole slides and tiled TIFF are read by region (data_prep/volumes/slides.py says which files), others whole.
    """

    # rows and columns; null: pictures stay whole, and whole slides are refused. Smaller pictures stay whole, too;
    # neighbours overlap where the size does not divide a picture's
    size: int | None = None
    overlap: int = 0  # pixels that neighbours share at least
    most: int | None = None  # tiles of a picture or plane, drawn by a hash of its hashed id and their places; null: all
    # files read by region: micrometres a pixel of tiles; null: the finest that is stored. Files that are coarser are
    # refused
    mpp: float | None = None
    mpp_tolerance: float = 0.05  # up to this deviation from `mpp`, as a share, a stored resolution is taken as it is
    # micrometres a pixel of the finest resolution in files that do not say it; null: refused where `mpp` is set
    assumed_mpp: float | None = None
    # files read by region in colour of 8 bits: share of a tile that has to be tissue; 0: all tiles are taken
    min_tissue: float = 0.25
    # saturation (HSV, 0…1) above which a pixel is tissue; null: Otsu's threshold of a small image of the file, between
    # 0.03 and 0.15
    tissue_above: float | None = None
    # standard deviation, in 0…1 of the picture's range, below which a tile is empty (glass, background) and left out
    min_spread: float = 0.02


@dataclass
class VideoConfig:
    """Videos, whose frames are the pictures of one series: every `frame_stride`-th."""

    # largest mean change of any of 32 × 32 cells, in 0…1, up to which a frame is left out as a copy of the last one
    # kept; below 0: none is
    max_change: float = 0.02
    broken: Literal["refuse", "keep"] = "refuse"  # a video that breaks off: its frames before that


@dataclass
class ImagesConfig(PrepConfig):
    """Settings of pictures, radiographs and PET."""

    sequence: str = "image"  # name of the pictures' one sequence, e.g. xray
    # what names the patient of a picture without `patient`; `file`: each is one. PatientID of DICOM takes precedence
    patient_from: Literal["auto", "first_folder", "parent_folder", "file"] = "file"
    class_from: Literal["none", "folder"] = "none"  # folder: a picture's folder is its class, in the column `class`
    # auto: as MedMNIST files and folders named train, val or test say; hash: by the hashed patient
    split_from: Literal["auto", "hash"] = "auto"
    # what becomes 0 and 1: auto, the ends of 8 bits, else the picture's 0.5th and 99.5th percentile; full, the ends of
    # the type; robust, the percentiles of all
    range: Literal["auto", "full", "robust"] = "auto"
    # pixels that are not opaque: refused, laid over black or white, or their colours as stored
    alpha: Literal["refuse", "black", "white", "drop"] = "refuse"
    # grey: by the luma of BT.601; keep: three channels of the one sequence, for a training with model.channels=3
    colour: Literal["grey", "keep", "refuse"] = "grey"
    longest: int | None = None  # pixels of the longer side; larger pictures are resampled to it, antialiased
    # pictures whose name or folder calls them masks, segmentations or annotations, where others are not called so
    drawings: Literal["keep", "refuse"] = "refuse"
    frame_stride: int = 1  # every n-th picture of a file that holds several, of a video too
    radiographs: RadiographConfig = field(default_factory=RadiographConfig)
    pet: PetConfig = field(default_factory=PetConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    tiles: TileConfig = field(default_factory=TileConfig)


# Range of each number
RANGES = {
    "workers": COUNT,
    "samples_per_shard": COUNT,
    "min_slices": NOT_NEGATIVE,
    "ignore": Allowed(0, 255),
    "max_labels_outside": SHARE,
    "split.train": NOT_NEGATIVE,
    "split.val": NOT_NEGATIVE,
    "split.test": NOT_NEGATIVE,
    "geometry.max_tilt_degrees": Allowed(0, 90),
    "geometry.max_oblique_degrees": Allowed(0, 90),
    "stacks.max_gap": COUNT,
    "grid.in_plane_mm": POSITIVE,
    "grid.size": Allowed(1, 16384),
    "limits.volume_gb": POSITIVE,
    "limits.minutes": NOT_NEGATIVE,
    "limits.zip_gb": POSITIVE,
    "air.threshold_hu": Allowed(),
    "air.min_body_fraction": SHARE,
    "min_overlap": SHARE,
    "min_foreground": SHARE,
    "longest": Allowed(1, 16384),
    "frame_stride": COUNT,
    "pet.top": POSITIVE,
    "video.max_change": Allowed(-1, 1),
    "tiles.size": Allowed(8, 16384),
    "tiles.overlap": NOT_NEGATIVE,
    "tiles.most": COUNT,
    "tiles.mpp": POSITIVE,
    "tiles.mpp_tolerance": Allowed(0, 0.5),
    "tiles.assumed_mpp": POSITIVE,
    "tiles.min_tissue": SHARE,
    "tiles.tissue_above": SHARE,
    "tiles.min_spread": NOT_NEGATIVE,
    "pet.body_suv": NOT_NEGATIVE,
    "pet.min_body_fraction": SHARE,
}
# Settings that change no slice: a second start may differ in them.
MACHINE_KEYS = ("workers", "limits", "strict")
