"""How much memory of a GPU a training step takes, and how many images fit, without making the step.

The step runs on tensors that have shapes and no numbers (PyTorch's FakeTensor), and every tensor's bytes are counted
from its birth to its end, as PyTorch's allocator counts them. Left out is what is not a tensor: the driver's context,
the workspaces of libraries, NCCL's buffers, gaps between blocks; a batch counts as fitting where the peak leaves a
twelfth of the GPU to these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain import build, checks, distillation
from pretrain.config import Config, MaskConfig, StageConfig, most_sequences
from pretrain.data import batch_plan
from pretrain.data.micro_batch import micro_batches
from pretrain.data.stream import Batch
from pretrain.data.views import Views
from pretrain.model import attention
from pretrain.model.vit import VisionTransformer
from pretrain.objective import monitors, sinkhorn
from pretrain.planning import counting
from pretrain.planning.live_bytes import GPU_BLOCK, Live

_USABLE = 11 / 12


@dataclass(frozen=True)
class Peak:
    """Bytes of one step.

    networks     weights of student, teacher and Gram teacher
    moments      of AdamW
    inputs       slices and crops
    logits       of the teacher, over all prototypes
    activations  what else there is when the backward pass begins: kept for it
    peak         of all of it together, gradients and what passes included
    """

    images: int
    networks: int
    moments: int
    inputs: int
    logits: int
    activations: int
    peak: int

    @property
    def rest(self) -> int:
        """Gradients, and what comes and goes."""
        return self.peak - self.networks - self.moments - self.inputs - self.logits - self.activations


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Fused attention, and as many logits at a time as a GPU takes, whatever the device is called."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(attention, "attend", F.scaled_dot_product_attention))
        logits = sinkhorn.LOGITS_AT_ONCE
        stack.enter_context(mock.patch.dict(logits, cpu=logits["cuda"]))
        # asks the device whether a sequence is masked at all: a few numbers
        stack.enter_context(mock.patch.object(monitors, "sequence_marginal", lambda *_: {}))
        yield


def batch_of(images: int, sequences: int, side: int, device: torch.device) -> Batch:
    """Slices of `side` × `side` random pixels without labels, all of them foreground and every sequence there."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(-1000, 1000, (images, sequences, side, side), dtype=torch.int16, generator=generator)
    number = torch.arange(images)
    return Batch(
        pixels.to(device),
        box=torch.tensor([[0, side, 0, side]]).repeat(images, 1),
        present=torch.ones(images, sequences, dtype=torch.bool),
        sample=number,
        epoch=torch.zeros_like(number),
        labels=torch.empty(images, 0, dtype=torch.int64),
    )


def masks_of(config: Config, stage: StageConfig, images: int, share: float) -> torch.Tensor:
    """(2 · images, S·P) masks with the same share of every crop's patches."""
    patches = most_sequences(config) * (stage.crops.global_size // config.model.patch_size) ** 2
    masks = torch.zeros(2 * images, patches, dtype=torch.bool)
    masks[:, : round(share * patches)] = True
    return masks


def backbones(*models: nn.Module | None) -> list[VisionTransformer]:
    """Return the transformers of some networks, passing over None."""
    found = [getattr(model, "backbone", model) for model in models if model is not None]
    return [backbone for backbone in found if isinstance(backbone, VisionTransformer)]


def weights_of(stage: StageConfig) -> distillation.StepWeights:
    """Return the weights of a stage's first step."""
    now = {name: float(values[0]) for name, values in build.schedules(stage).items()}
    return build.step_weights(stage, now)


def most_masked(masks: MaskConfig, images: int) -> float:
    """Share of masked patches that hardly a batch exceeds: three deviations above the expected one."""
    low, high = masks.ratio
    square = masks.probability * (low * low + low * high + high * high) / 3
    mean = masks.probability * (low + high) / 2
    return min(high, mean + 3 * math.sqrt((square - mean**2) / (2 * images)))


def computed(
    config: Config,
    stage: StageConfig,
    images: int,
    *,
    accumulate: int | None = None,
    masked: float | None = None,
    side: int = 512,
    gpu: bool = True,
) -> Peak:
    """The peak of a step with one of a stage's pairs of crop sizes, without making it.

    accumulate  micro-batches of the batch; None: machine.accumulate, right for the stage's own sizes
    masked      share of masked patches; None: `most_masked`
    side        of a slice, pixels
    gpu         as on a GPU; else as on this machine's CPU
    """
    machine = replace(config.machine, compile=False, attention="sdpa", device="cpu")
    config, nowhere = replace(config, machine=machine), FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        student, teacher = build.networks(counting.unlabelled(config))
        gram_teacher = build.backbone(config.model) if stage.gram.teacher_from else None
    models = [model for model in (student, teacher, gram_teacher) if model is not None]
    with nowhere:
        for model in models:
            model.to_empty(device="cpu")
        crops, slices = _inputs(config, stage, images, side)
    student.train()
    for frozen in models[1:]:
        frozen.requires_grad_(False).eval()
    for backbone in backbones(*models):
        build.prepare(backbone, machine, torch.device("cpu"))
    share = most_masked(stage.masks, images) if masked is None else masked
    masks = masks_of(config, stage, images, share)
    draws = build.draws(config, stage, batch_of(images, 1, 1, torch.device("cpu")), 0)
    counts = batch_plan.divide_batch(images, accumulate or machine.accumulate, stage.loss.koleo_group)
    batch = micro_batches(crops, masks, draws, counts)
    live, low = Live(GPU_BLOCK if gpu else 1), machine.precision != "float32"
    with as_on_a_gpu() if gpu else ExitStack(), live:
        precision = torch.autocast("cpu", torch.bfloat16, enabled=low)
        distillation.backward(
            student, teacher, batch, weights_of(stage), gram_teacher=gram_teacher, precision=precision
        )
    sizes, inputs = [_bytes(model.state_dict().values()) for model in models], _bytes([slices, *_tensors(crops)])
    columns = (head.last_layer.out_features for head in (student.dino_head, student.patch_head))
    logits = 4 * sum(rows * width for rows, width in zip((2 * images, int(masks.sum())), columns))
    static = sum(sizes) + 2 * sizes[0] + inputs
    assert live.kept is not None  # the step has a backward pass
    return Peak(images, sum(sizes), 2 * sizes[0], inputs, logits, live.kept - logits, static + live.peak)


def _inputs(config: Config, stage: StageConfig, images: int, side: int) -> tuple[Views, torch.Tensor]:
    crops, sequences = stage.crops, most_sequences(config)
    planes = sequences * config.model.channels

    def empty(number: int, size: int) -> torch.Tensor:
        return torch.empty(number, images, planes, size, size)

    views = Views(
        empty(2, crops.global_size),
        empty(crops.local_number, crops.local_size),
        empty(2, stage.gram.size) if stage.gram.teacher_from else None,
        None,  # every sequence is there: tensors without numbers cannot be asked
        tuple(config.data.sequences[:sequences]) if config.model.sequences else (),
    )
    return views, torch.empty(images, planes, side, side, dtype=torch.int16)


def _tensors(crops: Views) -> list[torch.Tensor]:
    each = (crops.global_crops, crops.local_crops, crops.gram_crops)
    return [images for images in each if images is not None]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def room(gigabytes: float) -> float:
    """Bytes of a GPU that a step may have."""
    return gigabytes * 2**30 * _USABLE


def largest(
    config: Config, stage: StageConfig, known: Peak, sizes: Sequence[float], accumulate: int | None = None
) -> list[int]:
    """How many images fit GPUs of so many GB (2³⁰ bytes), to one in a hundred; 0 where not even one does.

    known  one peak of the stage; accumulate as for `computed`
    """
    peaks = {0: 0, known.images: known.peak}
    found = []
    for size in sizes:
        space = room(size)
        while True:
            below = max(images for images, peak in peaks.items() if peak <= space)
            above = min((images for images, peak in peaks.items() if peak > space), default=None)
            if above is not None and above - below <= max(1, below // 100):
                break
            images = _between(peaks, below, above, space)
            peaks[images] = computed(config, stage, images, accumulate=accumulate).peak
        found.append(below)
    return found


def _between(peaks: Mapping[int, int], below: int, above: int | None, space: float) -> int:
    """Where to look next: peaks grow nearly evenly with the images, so where a straight line meets the space."""
    nearest = sorted((images for images in peaks if images), key=lambda images: abs(peaks[images] - space))[:2]
    if len(nearest) < 2:
        (only,) = nearest
        return max(only // 4, 1) if only > 1 else 2
    few, many = sorted(nearest)
    slope = (peaks[many] - peaks[few]) / (many - few)
    images = int(few + (space - peaks[few]) / slope) + (below == few)
    return min(max(images, below + 1), above - 1 if above else 4 * many)


def variants(config: Config) -> Iterator[tuple[str, StageConfig, int]]:
    """Each stage's name, the stage with its largest crops, and the micro-batches that a batch of these takes."""
    for name in config.stages:
        stage = checks.stage(config, name)
        plan, pairs = build.batch_plan(stage, config.seed), build.crop_variants(stage)
        number = max(set(plan.choice.tolist()), key=lambda each: crop_sizes(pairs[each]))
        yield name, pairs[number], batch_plan.micro_batch_count(config.machine.accumulate, plan.scales[number])


def crop_sizes(stage: StageConfig) -> tuple[int, int]:
    """Pixels of a stage's global and local crops."""
    return stage.crops.global_size, stage.crops.local_size
