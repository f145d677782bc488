"""The configuration of a pretraining run: what may be set, in which unit, with which default.

A file names what it changes; `stage_defaults` holds what the stages share and each entry of
`stages` only what differs. Sections that change results come first (the recipe); `machine` changes
speed alone and may differ between a start and a resumption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import MISSING, OmegaConf

from meddap import settings
from pretrain.schedules import warmup_cosine


@dataclass
class SourceConfig:
    """One of several data sets of a training."""

    root: str = MISSING  # folder with dataset.json
    # share of the samples: where all sources have a weight, their ratios count; else those without one divide what the
    # others leave, by their sizes. 0 leaves a source out
    weight: float | None = None
    sequences: list[str] = field(default_factory=list)  # read from it; empty: those of data.sequences that it has
    window: list[float] | None = None  # HU mapped to 0 and 1; null: intensity.window
    mean: float | None = None  # of the windowed value; null: intensity.mean
    std: float | None = None  # null: intensity.std
    rgb_mean: list[float] | None = None  # with model.channels=3, in place of mean; null: intensity.rgb_mean
    rgb_std: list[float] | None = None  # null: intensity.rgb_std
    body_threshold_hu: float | None = None  # null: crops.body_threshold_hu of the stage
    sampling: str | None = None  # NAME of weights of its samples, ROOT/NAME.weights.npy; null: all alike


@dataclass
class DataConfig:
    root: str = ""  # folder with dataset.json; or `sources`
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # by name: several data sets in one training
    temperature: float = 1.0  # exponent of the sizes of sources without a weight: 0.5 flattens them, 0 makes them equal
    split: str = "train"
    # read from every slice that has them; with `sources`, and not given: model.sequences where there are any
    sequences: list[str] = field(default_factory=lambda: ["ct"])
    labels: list[str] = field(default_factory=list)  # columns of class labels that a classifier head learns
    labelled_share: float = 1.0  # of the patients of each class, whose labels are seen: by their hashed ids
    only_labelled: bool = False  # leave out the slices whose labels are not seen: a supervised baseline


@dataclass
class IntensityConfig:
    # HU mapped to 0 and 1; of MR sequences it is the foreground's 0.5th and 99.5th percentile
    window: list[float] = field(default_factory=lambda: [-1000.0, 1000.0])
    mean: float = 0.449  # of the windowed value; ImageNet's grey mean and std are the defaults
    std: float = 0.226
    # of red, green and blue, in place of mean and std where model.channels=3; ImageNet's are the defaults
    rgb_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    rgb_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ModelConfig:
    patch_size: int = 16  # pixels
    # of a sequence: 1 grey; 3 red, green and blue, of grey slices three equal ones. Not in the text that encoders are
    # hashed by, where the patch embedding says it
    channels: int = field(default=1, repr=False)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int | None = None  # null: heads of 64 channels
    ffn: Literal["mlp", "swiglu"] = "mlp"
    ffn_ratio: float = 4.0
    qkv_bias: bool = True
    registers: int = 4
    # names that the model tells apart, in any order; more may be added to trained weights; empty: one sequence, unnamed
    sequences: list[str] = field(default_factory=list)
    mask_k_bias: bool = True
    position: Literal["rope", "learned"] = "rope"
    grid: int | None = None  # side of the learned position grid, in patches
    layer_scale: float | None = 1.0e-5  # initial value; null leaves LayerScale out
    norm_eps: float = 1.0e-5
    drop_path: float = 0.0  # share of samples that skip a residual branch of the student
    drop_path_over_depth: Literal["uniform", "linear"] = "uniform"  # in every block, or rising from 0 to the last one
    local_norm: bool = False  # a norm of its own for the cls token of local crops
    rope_base: float = 100.0
    rope_rescale: float | None = None  # the student's coordinates are stretched by up to this factor in training
    rope_rescale_per: Literal["step", "block"] = "step"  # a factor for all blocks (the paper), or for each (its code)


@dataclass
class HeadConfig:
    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    unit_norm_rows: bool = False  # DINOv2's last layer; steadier with few images
    learned_gain: bool = False  # with unit_norm_rows: a factor of each row, 1 at first (DINOv2)


@dataclass
class PairConfig:
    """Crop sizes of some of a stage's steps, in pixels."""

    ratio: float = 1.0  # of the steps that have them, by the sum of all ratios
    global_size: int = MISSING
    local_size: int = MISSING
    gram_size: int | None = None  # null: the stage's gram.size


@dataclass
class CropsConfig:
    global_size: int = 256  # pixels
    global_scale: list[float] = field(default_factory=lambda: [0.32, 1.0])  # share of the foreground box
    local_size: int = 112
    local_number: int = 8
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])
    scale_of: Literal["area", "side"] = "area"  # what the scales are a share of; side: of each of the box's sides
    aspect: list[float] = field(default_factory=lambda: [0.75, 1.3333333333333333])  # area: width by height
    around_labels: bool = False  # crops are centred at labelled voxels of slices that have some
    min_body: float = 0.3  # smallest share of body pixels in a crop
    body_threshold_hu: float = -500.0
    candidates: int = 4  # boxes tried per crop before the one with most body is taken
    flip: float = 0.0  # probability of a left-right flip; a body's sides differ
    # sizes drawn per step. Every step has batch_size images; one of more pixels than the sizes above give goes through
    # the student in more micro-batches (machine.accumulate): more time instead of more memory, except for the teacher's
    # logits
    mixture: list[PairConfig] = field(default_factory=list)

    @property
    def described(self) -> str:
        """Number and pixels of global and local crops, of each pair of a mixture."""
        pairs: Sequence[PairConfig | CropsConfig] = self.mixture or [self]
        of_local = ", {} × {}".format if self.local_number else "".format
        return "; ".join(f"2 × {pair.global_size}{of_local(self.local_number, pair.local_size)}" for pair in pairs)


@dataclass
class SliceAugmentConfig:
    """Once per slice and sequence, before it is cropped, on standardised values; FlexiCT's own numbers, all off."""

    noise_p: float = 0.0  # probability of noise (FlexiCT: 0.1)
    noise_std: float = 0.1  # largest standard deviation, in standard deviations of the input
    smooth_p: float = 0.0  # of Gaussian smoothing (0.2)
    smooth_sigma: list[float] = field(default_factory=lambda: [0.5, 1.0])  # pixels of the slice, each axis its own
    scale_p: float = 0.0  # of multiplying by 1 ± `scale` (0.15)
    scale: float = 0.25
    low_resolution_p: float = 0.0  # of a lower resolution (0.25)
    low_resolution: list[float] = field(default_factory=lambda: [0.5, 1.0])  # share of the sides' pixels
    gamma_p: float = 0.0  # of an exponent (0.1)
    gamma: list[float] = field(default_factory=lambda: [0.7, 1.5])  # of values between the slice's least and largest


@dataclass
class ColourAugmentConfig:
    """Of a crop's colours, with model.channels=3; strengths are DINOv2's, and all is off."""

    jitter_p: float = 0.0  # probability of brightness, contrast, saturation and hue in random order (DINOv2: 0.8)
    brightness: float = 0.4  # factor of 1 ± this
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # shift of ± this; 1 is the whole circle
    grey_p: float = 0.0  # of grey (0.2)
    solarise_p: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of inverted bright values (0, 0.2, 0)


@dataclass
class AugmentConfig:
    window_shift: float = 0.0  # largest shift of the window's level, HU
    mr_shift: float = 0.0  # the same of MR sequences, in widths of the window
    window_stretch: float = 0.0  # largest relative change of the window's width
    noise_p: float = 0.0  # probability of noise
    noise_std: float = 0.0  # largest standard deviation, in widths of the window
    # probability: global 1, global 2, local. The references' files name 1.0, 0.1, 0.5, but their code hands 1 − p to
    # torchvision, so that these are what they train with (DINOv3, issue 286)
    blur_p: list[float] = field(default_factory=lambda: [0.0, 0.9, 0.5])
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])  # pixels of the crop
    gamma_p: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of an exponent: global 1, global 2, local
    gamma: list[float] = field(default_factory=lambda: [0.75, 1.5])  # exponent of the windowed value in 0…1
    colour: ColourAugmentConfig = field(default_factory=ColourAugmentConfig)
    slice: SliceAugmentConfig = field(default_factory=SliceAugmentConfig)


@dataclass
class MaskConfig:
    probability: float = 0.5  # share of the global crops that are masked at all, exactly
    ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])  # share of its patches
    min_aspect: float = 0.3  # of a masked block
    sequence_probability: float = 0.0  # of a global crop to lose sequences entirely
    sequence_count: int = 1  # how many it loses; one always stays


@dataclass
class ScheduleConfig:
    """Linear warm-up from `start` to `peak`, then half a cosine to `end` (or constant where `end` is null).

    Every number that is named takes effect, or the stage is refused: pretrain/checks.py.
    """

    start: float | None = None  # of the warm-up; null: 0
    peak: float = MISSING
    end: float | None = None
    warmup_steps: int = 0  # fewer than the stage has
    cosine_steps: int | None = None  # of the half cosine, `end` from there on; null: all that are left

    @property
    def highest(self) -> float:
        """The largest value that the schedule names."""
        return max(each for each in (self.start, self.peak, self.end) if each is not None)

    def values(self, steps: int) -> np.ndarray:
        """Return the (steps,) float64 values of a stage. Raises ValueError where the schedule takes more steps."""
        return warmup_cosine(
            start=0.0 if self.start is None else self.start,
            peak=self.peak,
            end=self.peak if self.end is None else self.end,
            warmup_steps=self.warmup_steps,
            total_steps=steps,
            cosine_steps=self.cosine_steps,
        )


@dataclass
class LossConfig:
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    # images of the batch among which KoLeo seeks neighbours, consecutive ones; null: all. The references seek among one
    # GPU's share, which is this number there
    koleo_group: int | None = None
    # further weight of the local crops' part of DINO (the references' high-resolution stage has 0.5)
    dino_local: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=1.0))
    classes: float = 0.5  # of the classifier's loss where data.labels names columns, times the share that is labelled
    label_smoothing: float = 0.1
    class_temp: float = 0.1  # with classifier=prototypes
    student_temp: float = 0.1
    targets: Literal["sinkhorn", "centring"] = "sinkhorn"  # keeps the teacher's from using a few prototypes alone
    sinkhorn_iterations: int = 3
    centre_momentum: float = 0.9  # of the moving mean that centring subtracts


@dataclass
class OptimConfig:
    lr: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=2e-4))
    weight_decay: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.04))
    teacher_momentum: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.994))
    teacher_temp: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.07))
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip: float = 3.0  # largest norm of each part's gradient (backbone, DINO head, iBOT head)
    layer_decay: float = 0.9
    patch_embed_multiplier: float = 0.2
    freeze_last_layer_steps: int = 0  # first steps in which the prototypes stay as they are
    freeze_backbone_steps: int = 0  # first steps in which fresh heads learn alone


@dataclass
class GramConfig:
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4): patch similarities are held to an earlier teacher's."""

    teacher_from: str | None = None  # STAGE or STAGE/STEP of this run, whose teacher is the anchor; null: no anchoring
    size: int = 512  # pixels of the anchor's crops: the global crops again, finer and without distortion
    weight: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=2.0))
    refresh_every: int = 0  # steps after which the present teacher becomes the anchor; 0: never
    refresh_most: int | None = None  # how often at most; null: to the end

    def refreshes_after(self, done: int) -> bool:
        """Return whether the Gram teacher becomes the present teacher after `done` steps of its stage."""
        if not self.refresh_every or done % self.refresh_every:
            return False
        return self.refresh_most is None or done // self.refresh_every <= self.refresh_most


@dataclass
class StageConfig:
    steps: int = MISSING
    # weights of a backbone to start from instead of the stage before: a run, stage or step of ours, a published file
    # or a Hugging Face folder (pretrain/weights/published.py names the kinds); the heads start fresh
    init_from: str | None = None
    # images of every step, whatever the number of processes and the crop sizes: what the learning rate is chosen for
    batch_size: int = 512
    crops: CropsConfig = field(default_factory=CropsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    gram: GramConfig = field(default_factory=GramConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class SaveConfig:
    every: int = 1000  # steps between checkpoints
    keep_last: int = 2
    keep_every: int = 0  # steps; 0 keeps no others than the first, the last and `keep_last`


@dataclass
class KnnConfig:
    """Nearest neighbours on validation patients while training: `knn/auroc` in the metrics. Changes no weight."""

    every: int = 0  # steps; 0: never
    train_slices: int = 1000  # that neighbours are sought among
    val_slices: int = 500  # that ask
    k: int = 20
    temperature: float = 0.07


@dataclass
class MachineConfig:
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Literal["auto", "bf16", "float32"] = "auto"  # auto is bf16 where the device multiplies it in hardware
    recompute: bool = False  # less memory, a quarter more time: activations are computed again for the gradient
    # micro-batches of a batch, which go through the student one after the other: less memory, same results. For the
    # stage's own crop sizes; a pair of crops.mixture has as many more as it has more pixels. KoLeo among images of
    # several micro-batches (loss.koleo_group) takes one more forward pass of the global crops
    accumulate: int = 1
    compile: bool = False  # blocks by torch.compile: faster after some minutes
    cuda_graphs: bool = False  # with compile: a teacher's kernels are recorded once and started together
    attention: Literal["auto", "sdpa", "xformers"] = "auto"  # auto is xFormers' where it and a GPU are there
    parallel: Literal["none", "ddp", "fsdp"] = "ddp"  # how several processes share the networks; one has all of them
    reshard: bool = False  # fsdp: a block's parameters go again after the forward pass; for models that do not fit
    hang_timeout: float = 1800.0  # seconds for any part of a step before the run ends and names who hangs; 0: never
    decode_threads: int = 2
    prefetch: int = 2  # batches
    log_every: int = 20  # steps between console lines where there is no terminal
    tensorboard: bool = True


@dataclass
class Config:
    name: str = MISSING
    output: str = "runs"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    intensity: IntensityConfig = field(default_factory=IntensityConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dino_head: HeadConfig = field(default_factory=HeadConfig)
    ibot_head: HeadConfig | None = field(default_factory=HeadConfig)  # null: masked patches go through the DINO head
    # what learns data.labels: a linear classifier of the global crops' cls tokens, or the DINO head's own prototypes,
    # one for each class of the one column, on all crops (MM-DINOv2)
    classifier: Literal["linear", "prototypes"] = "linear"
    stage_defaults: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = MISSING
    save: SaveConfig = field(default_factory=SaveConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


def load(file: str | Path, overrides: Sequence[str] = (), *, needs_data: bool = True) -> Config:
    """Return the configuration in `file` with `key=value` overrides. Raises SettingsError, one line.

    needs_data  refuse a configuration that names no data
    """
    config = settings.load(Config, file, list(overrides))
    if needs_data and not config.data.root and not config.data.sources:
        raise settings.SettingsError(f"{file}: data.root is required; give data.root=VALUE, or data.sources")
    if config.data.sources and config.model.sequences and not settings.is_given("data.sequences", file, overrides):
        config.data.sequences = list(config.model.sequences)  # so that it is written down as it is read
    return config


def sources_of(data: DataConfig) -> dict[str, SourceConfig]:
    """Return the data sets of a training by name, sorted, without those whose weight is 0.

    The one that `root` names has the name "".
    """
    if not data.sources:
        return {"": SourceConfig(data.root)}
    return {name: data.sources[name] for name in sorted(data.sources) if data.sources[name].weight != 0}


def most_sequences(config: Config) -> int:
    """Return how many sequences an image of the source with most of them may have."""
    return max(len(source.sequences or config.data.sequences) for source in sources_of(config.data).values())


def head_count(model: ModelConfig) -> int:
    """Return the number of attention heads. Raises SettingsError where heads of 64 channels do not fit the width."""
    if model.num_heads is not None:
        return model.num_heads
    if model.embed_dim % 64:
        raise settings.SettingsError(
            f"model.embed_dim={model.embed_dim}: not a multiple of 64, the width of a head; set model.num_heads"
        )
    return model.embed_dim // 64


def recorded(config: Config, name: str) -> StageConfig:
    """Return stage `name`: StageConfig's defaults, then `stage_defaults`, then its own entry.

    Nothing is checked, since a run may have been made by an older version. For training use `checks.stage`.
    """
    return settings.merge(StageConfig, *_layers(config, name))


def gram_teacher_place(teacher_from: str) -> tuple[str, int | None]:
    """Return stage and step of `gram.teacher_from`; the step is None for a stage's last. Raises ValueError."""
    stage_name, _, step = teacher_from.partition("/")
    return stage_name, int(step) if step else None


def gram_teacher_steps(config: Config, name: str) -> set[int]:
    """Return the steps of stage `name` that other stages take their Gram teacher from: they are saved and kept."""
    taken = (recorded(config, other).gram.teacher_from for other in config.stages)
    places = [gram_teacher_place(each) for each in taken if each]
    return {step for stage_name, step in places if stage_name == name and step}


def _layers(config: Config, name: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return ("stage_defaults", config.stage_defaults), (f"stages.{name}", config.stages[name] or {})


# what a seed draws of crops, masks and batches; a change here means that older runs cannot go on
DRAWS = 2
# what older versions did where they knew no such setting
_BEFORE = {"draws": 1, "model.drop_path_over_depth": "linear"}


def recipe(config: Config, name: str) -> dict[str, Any]:
    """Return everything that changes the results of stage `name`, as flat `section.key` → value."""
    sections = {
        "draws": DRAWS,
        "seed": config.seed,
        "data.split": config.data.split,
        "data.sequences": list(config.data.sequences),
        "data.labels": list(config.data.labels),
        "data.labelled_share": config.data.labelled_share,
        "data.only_labelled": config.data.only_labelled,
        "intensity": config.intensity,
        "model": replace(config.model, num_heads=head_count(config.model)),
        "dino_head": config.dino_head,
        "ibot_head": config.ibot_head,
        "classifier": config.classifier,
        f"stages.{name}": recorded(config, name),
    }
    flat = dict(_flat("", {key: _plain(value) for key, value in sections.items()}))
    del flat[f"stages.{name}.init_from"]  # files may move; what they held is in the first checkpoint
    return flat


def older_recipe(name: str) -> dict[str, Any]:
    """Return the recipe of a version that knew none of today's settings: their defaults, or what it did instead."""
    return recipe(Config(stages={name: {"steps": 1}}), name) | _BEFORE  # steps have no default


def as_text(config: Config) -> str:
    """Return the resolved configuration as YAML that `load` reads again."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _flat(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
