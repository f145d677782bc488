"""A task and its probes: data, split, images, features, and the values among which validation patients choose.

A task is one YAML file of these keys; any key may be given on the command line. A probe's settings are one dataclass
here and one field of TaskConfig, named as the probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, is_dataclass
from typing import Literal

from omegaconf import MISSING

from eval import ranges
from meddap.ranges import check_ranges
from meddap.settings import SettingsError

Kind = Literal["binary", "multiclass", "multilabel", "regression", "segmentation", "retrieval", "anomaly", "survival"]
Level = Literal["slice", "volume"]
Pooling = Literal["mean", "max"]
DecoderKind = Literal["linear", "primus", "unet"]


@dataclass
class TaskSplitConfig:
    """Who trains, who chooses, who is tested; always whole patients."""

    by: Literal["given", "patient", "kfold", "site"] = "given"  # as in the data; by hash; k-fold; leave one site out
    train: float = 0.6  # shares of the patients where the split is by `patient`
    val: float = 0.2  # of the patients that are not tested, where the split is `kfold` or `site`
    test: float = 0.2
    folds: int = 5
    salt: str = ""  # another word, another draw of patients


@dataclass
class TableConfig:
    """A CSV with labels: one column names the patient, study or slice, the others are labels."""

    file: str | None = None
    by: Literal["patient", "study", "slice"] = "patient"
    id: str = "id"  # column of the patient, study or slice
    labels: list[str] = field(default_factory=list)  # columns that are labels; empty: all others but site and split
    site: str = "site"  # column of the site, where there is one
    split: str = "split"  # column of train, val, test, where there is one


@dataclass
class FilesGeometryConfig:
    """What decides where the header of a NIfTI file does not; names and words are those of sharding."""

    units: Literal["header", "mm", "metre", "micron"] = "header"
    disagreeing: Literal["refuse", "sform", "qform"] = "refuse"
    unoriented: Literal["refuse", "ras", "las", "lps"] = "refuse"


@dataclass
class FilesLimitConfig:
    """Limits beyond which a volume is refused."""

    volume_gb: float = 4.0  # voxels in int16


@dataclass
class FilesConfig:
    """What file names and files mean (sources `folders` and `nnunet`)."""

    patient: str | None = None  # regular expression whose group is the patient; none: every file is a patient
    site: str | None = None  # the same of the site
    modality: Literal["CT", "MR"] = "CT"  # of NIfTI volumes
    # nnU-Net's CT: values that speak against HU (windowed, no air) are read as HU and that is said; check refuses them
    values: Literal["check", "trust"] = "trust"
    # nnU-Net's, or a public set as it is downloaded: auto, or a name of data_prep/discovery/layouts (msd, btcv …)
    layout: str = "auto"
    channels: list[str] = field(default_factory=list)  # names of nnU-Net's channels; empty: those of dataset.json
    plane_stride: int = 1  # every n-th slice of a volume
    # label values of voxels that nobody annotated, out of loss and score; so is what dataset.json calls "ignore"
    ignore: list[int] = field(default_factory=lambda: [255])
    # nnU-Net: a label map of its image's shape on another grid is placed by its affine, and that is said; or refused
    label_grid: Literal["place", "refuse"] = "place"
    max_labels_outside: float = 0.01  # share of a map's label voxels that may lie outside its image
    geometry: FilesGeometryConfig = field(default_factory=FilesGeometryConfig)
    limits: FilesLimitConfig = field(default_factory=FilesLimitConfig)
    # pictures. What becomes 0 and 1: auto, the ends of 8 bits, else the picture's 0.5th and 99.5th percentile; full,
    # the ends of the type; robust, the percentiles of all; hu, the encoder's window, for values in HU
    range: Literal["auto", "full", "robust", "hu"] = "auto"
    # pixels that are not opaque: refused, laid over black or white, or their colours as stored
    alpha: Literal["refuse", "black", "white", "drop"] = "refuse"
    # grey: by the luma of BT.601; keep: three channels, of which an encoder of one sees the luma; of MedMNIST files too
    colour: Literal["grey", "keep", "refuse"] = "grey"


@dataclass
class StrideConfig:
    """Every n-th slice of a series is used."""

    train: int = 3
    val: int = 3
    test: int = 2


@dataclass
class KnnProbeConfig:
    k: list[int] = field(default_factory=lambda: [5, 10, 20, 50, 100, 200])
    temperature: float = 0.07


@dataclass
class LogisticConfig:
    strengths: int = 45  # C of scikit-learn from `low` to `high`, evenly in the exponent
    low: float = 1e-6
    high: float = 1e5
    steps: int = 60  # of L-BFGS, for each strength
    standardise: bool = True


@dataclass
class LinearConfig:
    """Linear heads by SGD, all at once: every learning rate × blocks × with and without the mean patch."""

    lr: list[float] = field(
        default_factory=lambda: [
            *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
            *(2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
        ]
    )  # for a batch of 256, scaled to the batch
    blocks: list[int] = field(default_factory=lambda: [1, 4])  # cls tokens of the last so many blocks
    mean_patch: list[bool] = field(default_factory=lambda: [False, True])
    steps: int = 1250
    batch_size: int = 128
    momentum: float = 0.9


@dataclass
class AttentiveConfig:
    """A query that attends to the patches of a slice, then a linear head."""

    lr: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    heads: int = 4
    epochs: int = 10
    batch_size: int = 64
    weight_decay: float = 0.01


@dataclass
class MilConfig:
    """Gated attention over the slices of a volume (multiple instances), beside mean and maximum of the slices."""

    lr: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    hidden: int = 64
    epochs: int = 60
    dropout: float = 0.25
    weight_decay: float = 1e-3


@dataclass
class FewShotConfig:
    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])  # units of each class
    draws: int = 10  # stratified, each of other units
    strength: float = 1.0  # C of the logistic regression: so few units leave nothing to choose by


@dataclass
class FractionConfig:
    percent: list[float] = field(default_factory=lambda: [1, 5, 10, 25, 50, 100])  # of the training patients
    draws: int = 3  # of patients, for each share below 100


@dataclass
class RegionConfig:
    """Structures classified by the mean of the patches under their mask."""

    strength: float = 1.0
    cells: int = 4  # per patch and axis, in which the share of a patch that a mask covers is counted


@dataclass
class RetrievalConfig:
    k: list[int] = field(default_factory=lambda: [1, 5, 10])
    gallery: Literal["train", "test"] = "train"  # what is searched; test: the other test patients


@dataclass
class ZeroShotConfig:
    # how a label is scored: auto, against its absence unless the encoder was trained to score texts one by one
    # (SigLIP) and no absent_prompts are given; pair, against its absence
    labels: Literal["auto", "pair"] = "auto"


@dataclass
class AnomalyConfig:
    """A memory of patches of normal slices; a patch is as abnormal as its nearest memory is far."""

    memory: int = 10000  # patches kept
    neighbours: list[int] = field(default_factory=lambda: [1, 3])
    top: list[float] = field(default_factory=lambda: [0.0, 0.01, 0.05])  # share of a slice's patches; 0: the worst one


@dataclass
class FewShotAnomalyConfig:
    """Residual adapters at several depths of the frozen encoder, from few slices (MVFA, arXiv 2403.12570)."""

    normal: int = 16  # normal training slices, from as many patients as there are
    # abnormal ones beside them, a row of results each; 0: normal slices alone, nothing is trained
    abnormal: list[int] = field(default_factory=lambda: [0, 16])
    draws: int = 3  # of the slices, each fitted anew
    depths: int = 4  # blocks behind which adapters are, evenly spaced to the last one
    width: int = 256  # of the adapters' middles where the encoder has no text tower, whose features set it
    epochs: list[int] = field(default_factory=lambda: [10, 50])  # validation takes one
    lr: float = 1e-3
    batch_size: int = 8
    memory: int = 4000  # tokens of normal slices that are kept at each depth
    top: list[float] = field(default_factory=lambda: [0.0, 0.05, 1.0])  # share of a slice's patches; 0: the worst one


@dataclass
class RidgeConfig:
    strengths: list[float] = field(default_factory=lambda: [1e-3, 1e-2, 1e-1, 1, 10, 100, 1e3, 1e4, 1e5])


@dataclass
class SurvivalConfig:
    """Cox's proportional hazards on principal components of the features."""

    components: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    penalties: list[float] = field(default_factory=lambda: [1e-2, 1e-1, 1.0])


@dataclass
class DrawingConfig:
    """What every probe that draws structures shares."""

    # validation takes one for each structure; low ones for what is rare and small
    thresholds: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    surfaces: bool = True  # HD95 and normalised surface distance too
    tolerance_mm: float = 2.0  # of the normalised surface distance


@dataclass
class DecoderConfig:
    """A decoder on frozen patch features."""

    blocks: list[int] = field(default_factory=list)  # from 0, negative from the end; empty: the ends of the quarters
    cells: int = 4  # output pixels per patch and axis: drawn finer than a patch
    channels: int = 16  # of the finest level (unet_decoder, stack3d: of its convolutions)
    lr: list[float] = field(default_factory=lambda: [2e-3])
    epochs: int = 8
    batch_size: int = 32  # slices
    weight_decay: float = 1e-3


@dataclass
class PatchKnnConfig:
    k: list[int] = field(default_factory=lambda: [5, 15, 40])
    temperature: float = 0.07
    bank: int = 20000  # training patches that are kept
    cells: int = 4


@dataclass
class VolumeHeadConfig(DecoderConfig):
    """A light head in three dimensions over neighbouring slices."""

    depth: int = 8  # slices of a stack
    layers: int = 2
    channels: int = 32
    batch_size: int = 4  # stacks


@dataclass
class NetworkConfig:
    """A network that is trained on images: from scratch, or from the encoder's weights."""

    lr: list[float] = field(default_factory=lambda: [1e-3])
    epochs: int = 8
    batch_size: int = 32
    weight_decay: float = 1e-2
    warmup: float = 0.1  # of the steps
    augment: bool = True  # small turns, shifts, zooms, changes of contrast; no flips: organs have sides
    channels: int = 16  # of the first level of a network from scratch


@dataclass
class TuneConfig(NetworkConfig):
    """The encoder trained further under a head that begins as the frozen probe's (arXiv 2202.10054)."""

    augment: bool = False  # changed images are not what the head was fitted on: it pays with many passes only
    decoder: DecoderKind = "linear"  # where structures are drawn
    layer_decay: float = 0.75  # of the learning rate, per block from the top
    rank: int = 4  # of LoRA
    alpha: float = 8.0


_MAY_BE_EMPTY = ("ignore",)


@dataclass
class PredictConfig:
    """How a kept head is used on new patients; what its task says is as it was."""

    stride: int | None = None  # every n-th slice; none: that of the test patients, where structures are drawn every one
    split: str = ""  # of shards: that alone
    maps: Literal["labels", "each"] = "labels"  # drawn structures: one label map, or a file each (they may overlap)
    workers: int = 1  # processes that prepare raw images
    batch_size: int = 32  # slices per forward pass


@dataclass
class EmbedConfig:
    """What a vector is made from."""

    size: int = 224  # pixels to which a square around the body is resized; a multiple of the patch size
    tokens: Literal["cls", "mean_patch", "both"] = "both"
    # cls tokens (tokens=mean_patch: mean patches) of the last so many blocks; both adds the last mean patch
    blocks: int = 1
    pool: Pooling = "mean"  # of the slices of a series, and of the series of a patient
    stride: int = 1  # every n-th slice of a series
    window: list[float] | None = None  # HU that become 0 and 1; null: the encoder's
    split: str = ""  # of shards: that alone
    workers: int = 1  # processes that prepare raw images
    batch_size: int = 32  # slices per forward pass
    bf16: bool = True  # autocast where the device multiplies it in hardware


@dataclass
class DuplicatesConfig:
    """What counts as a near-duplicate. The defaults were chosen on patients of head and neck CT (docs/data.md)."""

    radius: int = 64  # bits of 256 in which the hashes of two slices may differ to be compared at all
    neighbours: int = 64  # nearest hashes that are compared for each slice
    slice: float = 0.975  # correlation from which two slices are duplicates
    similar: float = 0.85  # correlation from which two slices count for their series
    series: float = 0.3  # share of the shorter series' slices that must be similar, in one order
    keep: float = 0.0  # a cluster of m duplicates weighs as 1 + keep · (m − 1) slices


@dataclass
class ClustersConfig:
    """Clusters of an encoder's features: k-means of the slices, k-means of its centroids, … (arXiv 2405.15613)."""

    sizes: list[int] = field(default_factory=list)  # of each level, falling; empty: by the number of slices
    passes: int = 10  # of k-means, each time
    rounds: int = 2  # of resampling: k-means again on the few slices nearest to each centroid
    nearest: int = 8  # those few
    memory_gb: float = 1.0  # of distances at a time
    seed: int = 0


@dataclass
class BodyPartConfig:
    """Body parts of slices whose headers state none, guessed from the labelled slices most like them."""

    guess: bool = True  # false: what nobody states stays unknown
    k: int = 5  # labelled slices that vote
    agreement: float = 0.8  # share of the votes without which nothing is guessed
    accuracy: float = 0.9  # of guesses of labelled slices, by other patients' alone; less, and nothing is guessed
    most: int = 50000  # labelled slices, drawn where there are more


@dataclass
class CurateConfig:
    """How often a training draws each slice, and what that rests on."""

    split: str = "train"  # whose slices get weights; duplicates are looked for in all splits
    name: str = (
        "curated"  # of the weights, as `data.sources.NAME.sampling` takes it; an absolute path: not beside the shards
    )
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    # how far the draws are evened out: 0 not at all, 1 as often from each word; share^(1 − strength)
    balance: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("body_part", "manufacturer", "model", "sequence", "cluster"), 0.5)
    )
    clusters: ClustersConfig = field(default_factory=ClustersConfig)
    body_parts: BodyPartConfig = field(default_factory=BodyPartConfig)
    size: int = 224  # pixels to which a square around the body is resized for the encoder
    batch_size: int = 32  # slices per forward pass
    max_weight: float = 10.0  # times the mean
    min_weight: float = 0.01  # times the mean; 0 lets a slice never come
    # training patients who are in validation or test too, under another id: said, given no draws, or an error
    leaks: Literal["say", "leave_out", "refuse"] = "say"
    workers: int = 1  # threads that decode slices


@dataclass
class PatchMapConfig:
    """The interactive patch map of the report: which test slices it holds. Reports of large maps leave slices out."""

    patients: int = 12  # test patients (of folds, of the last), evenly spread; 0: no map
    slices: int = 12  # of each patient, evenly spread over its longest series
    pixels: int = 256  # most pixels of the side of a slice as it is shown
    error: float = 0.02  # of a cosine, below which principal components are left out
    memory_gb: float = 0.5  # of features before they are reduced; fewer slices where they would take more


_EVEN = ("segmentation", "stack3d")  # draw by squares that overlap by half


@dataclass
class TaskConfig:
    data: str = MISSING  # folder with dataset.json (shards, table), folder (folders, nnunet) or file (medmnist)
    name: str = "organs"
    source: Literal["shards", "table", "folders", "nnunet", "medmnist", "vectors"] = "shards"
    kind: Kind = "segmentation"
    level: Level = "slice"  # what a prediction is made for
    split: TaskSplitConfig = field(default_factory=TaskSplitConfig)
    table: TableConfig = field(default_factory=TableConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    metrics: list[str] = field(default_factory=list)  # empty: those that suit the kind
    # PROBE/METRIC by which encoders are judged first; empty: the kind's first metric, by the first probe that gives it
    main: str = ""
    # attributes of test patients whose groups are scored one by one: fields of the shards' metadata (sex, age_decade,
    # manufacturer, kernel …), columns of the table, or site
    subgroups: list[str] = field(default_factory=list)
    subgroup_patients: int = 10  # a group with fewer, or that leaves fewer, is named and not scored
    label: str = ""  # source shards, multiclass or binary: the column of class labels that the shards carry
    # share of training and validation patients whose labels are used: those that data.labelled_share shows
    labelled_share: float = 1.0
    # source medmnist: names of labels (multilabel, regression) or classes, by their numbers; empty: label 0, class 0 …
    names: list[str] = field(default_factory=list)
    published: str = ""  # FILE/SET of eval/published, whose figures are printed beside these; empty: none
    positive: list[str] = field(default_factory=list)  # classes that count as 1 (binary, anomaly); empty: the second
    size: int = 128  # pixels to which a square around the body is resized; a multiple of the patch size
    mean_patch: bool = True  # pooled features are cls token and mean patch; false: the cls token alone
    blocks: list[int] = field(default_factory=lambda: [-2, -1])  # whose patch features are read, counted from the end
    organs: dict[str, int] = field(default_factory=dict)  # name → label value; empty takes those of the data
    min_pixels: int = 10  # a structure with fewer in a slice does not count as present or absent there
    stride: StrideConfig = field(default_factory=StrideConfig)
    probes: list[str] = field(default_factory=lambda: ["knn", "logistic", "segmentation"])
    pool: Pooling = "mean"  # of the slices of a volume, where the level is volume
    # in words, for encoders with a text tower: phrases by class or label; a class that is not named is called by its
    # name. `templates` stand around each phrase ({}), and around `attributes` of its class ({shape}, {colour} …)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    absent_prompts: dict[str, list[str]] = field(default_factory=dict)  # phrases for the absence of a label
    absence: str = "no {}"  # of each phrase of a label that absent_prompts does not name
    templates: list[str] = field(default_factory=lambda: ["{}", "an image of {}", "a medical image showing {}"])
    attributes: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # class → shape, colour … → its values
    refit: bool = False  # fit on training and validation patients once the choice is made
    leaks: Literal["mark", "refuse"] = "mark"  # what becomes of the table where pretraining saw test patients
    pretraining: list[str] = field(default_factory=list)  # data sets that the encoder saw, besides what it says itself
    knn: KnnProbeConfig = field(default_factory=KnnProbeConfig)
    logistic: LogisticConfig = field(default_factory=LogisticConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    mil: MilConfig = field(default_factory=MilConfig)
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    fractions: FractionConfig = field(default_factory=FractionConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    few_shot_anomaly: FewShotAnomalyConfig = field(default_factory=FewShotAnomalyConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    ridge: RidgeConfig = field(default_factory=RidgeConfig)
    cox: SurvivalConfig = field(default_factory=SurvivalConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    segmentation: DecoderConfig = field(default_factory=lambda: DecoderConfig(lr=[1e-3, 4e-3]))
    primus: DecoderConfig = field(default_factory=DecoderConfig)
    unet_decoder: DecoderConfig = field(default_factory=DecoderConfig)
    patch_knn: PatchKnnConfig = field(default_factory=PatchKnnConfig)
    stack3d: VolumeHeadConfig = field(default_factory=VolumeHeadConfig)
    lora: TuneConfig = field(default_factory=TuneConfig)
    bitfit: TuneConfig = field(default_factory=TuneConfig)
    finetune: TuneConfig = field(default_factory=lambda: TuneConfig(lr=[3e-4]))
    unet: NetworkConfig = field(default_factory=lambda: NetworkConfig(lr=[2e-3]))
    transunet: NetworkConfig = field(default_factory=NetworkConfig)
    cnn: NetworkConfig = field(default_factory=NetworkConfig)
    keep_heads: bool = True  # fitted heads are kept beside the results, for meddap predict
    head_gb: float = 2.0  # a head of more gigabytes is not kept, and that is said
    draws: int = 2000  # of the bootstrap
    seed: int = 0
    # HU that become 0 and 1; null: those of the training's source that these shards are, else the encoder's
    window: list[float] | None = None
    # several windows [LOW, HIGH] instead of one: validation patients choose between them, or the encoder sees them at
    # once as its channels (three, by encoders of colour images). The same for every encoder that is compared
    windows: list[list[float]] = field(default_factory=list)
    windows_as: Literal["choice", "channels"] = "choice"
    # name under which an encoder of several sequences takes images of one, e.g. xray; empty: their own. Picture files
    # have none. Encoders that know no names ignore it
    sequence: str = ""
    # of these values, one number for each channel of an encoder of ours; null: the encoder's
    mean: list[float] | None = None
    std: list[float] | None = None
    like: str | None = None  # checkpoint whose architecture `--checkpoint random` takes
    pictures: int = 4  # test slices shown in the report
    patch_map: PatchMapConfig = field(default_factory=PatchMapConfig)
    batch_size: int = 32  # slices per forward pass
    bf16: bool = True  # autocast where the device multiplies it in hardware


def check(task: TaskConfig) -> None:
    """Raise SettingsError for a number out of range, cells that a probe cannot draw in, a choice between no values."""
    check_ranges("", task, ranges.TASK)
    _check_windows(task)
    for name, settings in vars(task).items():
        cells, even = getattr(settings, "cells", 1), name in _EVEN
        if even and cells % 2:
            raise SettingsError(f"{name}.cells={cells}: give an even number above 0")
        for key in vars(settings) if is_dataclass(settings) else ():
            if getattr(settings, key) == [] and getattr(type(settings)(), key) and key not in _MAY_BE_EMPTY:
                raise SettingsError(f"{name}.{key}=[]: give one value or more")


def _check_windows(task: TaskConfig) -> None:
    if task.windows and task.window is not None:
        raise SettingsError(f"window={task.window} and windows={task.windows}: give one of the two")
    for pair in task.windows:
        if len(pair) != 2 or not all(map(math.isfinite, pair)) or not pair[0] < pair[1]:
            raise SettingsError(f"windows={task.windows}: expected pairs [LOW, HIGH] in HU, the first below the second")
    if len({tuple(pair) for pair in task.windows}) < len(task.windows):
        raise SettingsError(f"windows={task.windows}: a window is named twice")
    if task.windows_as == "channels" and not task.windows:
        raise SettingsError("windows_as=channels: give windows=[[LOW,HIGH],[LOW,HIGH],[LOW,HIGH]] too")
