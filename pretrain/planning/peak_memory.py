"""How much memory of a GPU a training step takes, and how many images fit.

    python benchmarks/memory.py [--config FILE …] [--device auto|cpu|cuda]

On a GPU the peak of real steps is measured beside the computed one. Without one it is computed: the step itself runs on
tensors that have shapes and no numbers (PyTorch's FakeTensor), and every tensor's bytes are counted from its birth to
its end, as PyTorch's allocator counts them. Left out is what is not a tensor: the driver's context, the workspaces of
libraries, NCCL's buffers, gaps between blocks; a batch counts as fitting where the peak leaves a twelfth of the GPU to
these.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import counting, training_step
from benchmarks.live_bytes import GPU_BLOCK, Live
from meddap.settings import SettingsError
from pretrain import accumulate, build, distillation
from pretrain import config as configuration
from pretrain.config import Config, MaskConfig, StageConfig
from pretrain.data import batch_plan
from pretrain.data.views import Views
from pretrain.model import attention
from pretrain.objective import sinkhorn
from pretrain.runtime.device import pick_device

CONFIGS = ("meddinov3_vitb16", "dinov3_vitl16")
IMAGES = 64  # on one GPU of the configurations' 8 and 32
GPUS = (24, 40, 80, 141)
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
        logits = sinkhorn._LOGITS
        stack.enter_context(mock.patch.dict(logits, cpu=logits["cuda"]))
        # asks the device whether a sequence is masked at all: a few numbers
        stack.enter_context(mock.patch.object(distillation, "_marginal", lambda *_: {}))
        yield


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
    parts: int | None = None,
    masked: float | None = None,
    side: int = 512,
    gpu: bool = True,
) -> Peak:
    """The peak of a step with one of a stage's pairs of crop sizes, without making it.

    parts   of the batch; None: machine.accumulate, right for the stage's own sizes
    masked  share of masked patches; None: `most_masked`
    side    of a slice, pixels
    gpu     as on a GPU; else as on this machine's CPU
    """
    machine = replace(config.machine, compile=False, attention="sdpa", device="cpu")
    config, nowhere = replace(config, machine=machine), FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        student, teacher = build.networks(counting.unlabelled(config))
        anchor = build.backbone(config.model) if stage.gram.teacher_from else None
    models = [model for model in (student, teacher, anchor) if model is not None]
    with nowhere:
        for model in models:
            model.to_empty(device="cpu")
        crops, slices = _inputs(config, stage, images, side)
    student.train()
    for frozen in models[1:]:
        frozen.requires_grad_(False).eval()
    for backbone in training_step.backbones(*models):
        build.prepare(backbone, machine, torch.device("cpu"))
    share = most_masked(stage.masks, images) if masked is None else masked
    masks = training_step.masks_of(config, stage, images, share)
    draws = build.draws(config, stage, training_step.batch_of(images, 1, 1, torch.device("cpu")), 0)
    counts = accumulate.divided(images, parts or machine.accumulate, stage.loss.koleo_group)
    batch = distillation.parts(crops, masks, draws, counts)
    live, low = Live(GPU_BLOCK if gpu else 1), machine.precision != "float32"
    with as_on_a_gpu() if gpu else ExitStack(), live:
        precision = torch.autocast("cpu", torch.bfloat16, enabled=low)
        distillation.gradients(
            student, teacher, batch, training_step.weights_of(stage), gram_teacher=anchor, precision=precision
        )
    weights, inputs = [_bytes(model.state_dict().values()) for model in models], _bytes([slices, *_parts(crops)])
    columns = (head.last_layer.out_features for head in (student.dino_head, student.patch_head))
    logits = 4 * sum(rows * width for rows, width in zip((2 * images, int(masks.sum())), columns))
    static = sum(weights) + 2 * weights[0] + inputs
    return Peak(images, sum(weights), 2 * weights[0], inputs, logits, live.kept - logits, static + live.peak)


def _inputs(config: Config, stage: StageConfig, images: int, side: int) -> tuple[Views, torch.Tensor]:
    crops, sequences = stage.crops, len(config.data.sequences)

    def empty(number: int, size: int) -> torch.Tensor:
        return torch.empty(number, images, sequences, size, size)

    views = Views(
        empty(2, crops.global_size),
        empty(crops.local_number, crops.local_size),
        empty(2, stage.gram.size) if stage.gram.teacher_from else None,
        None,  # every sequence is there: tensors without numbers cannot be asked
        tuple(config.data.sequences) if config.model.sequences else (),
    )
    return views, torch.empty(images, sequences, side, side, dtype=torch.int16)


def _parts(crops: Views) -> list[torch.Tensor]:
    each = (crops.global_crops, crops.local_crops, crops.gram_crops)
    return [images for images in each if images is not None]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def measured(config: Config, stage: StageConfig, images: int, device: torch.device, parts: int = 1) -> int:
    """The most bytes that PyTorch's allocator gave out during real steps on a GPU. Raises torch.OutOfMemoryError."""
    arm = training_step.Arm(config, stage, images, device, parts=parts, masked=most_masked(stage.masks, images))
    arm.step()  # the moments are made here
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    arm.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def room(gigabytes: float) -> float:
    """Bytes of a GPU that a step may have."""
    return gigabytes * 2**30 * _USABLE


def largest(
    config: Config, stage: StageConfig, known: Peak, sizes: Sequence[float], parts: int | None = None
) -> list[int]:
    """How many images fit GPUs of so many GB (2³⁰ bytes), to one in a hundred; 0 where not even one does.

    known  one peak of the stage; parts as for `computed`
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
            peaks[images] = computed(config, stage, images, parts=parts).peak
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
    """Each stage's name, the stage with its largest crops, and the parts in which these have a batch computed."""
    for name in config.stages:
        plan = batch_plan.plan(configuration.stage(config, name), config.seed)
        number = max(set(plan.choice.tolist()), key=lambda each: _sizes(plan.variants[each]))
        yield name, plan.variants[number], accumulate.wanted(config.machine.accumulate, plan.scales[number])


def _sizes(stage: StageConfig) -> tuple[int, int]:
    return stage.crops.global_size, stage.crops.local_size


def with_recompute(config: Config, wanted: bool) -> Config:
    return replace(config, machine=replace(config.machine, recompute=wanted))


def report(files: Sequence[Path], device: torch.device) -> Iterator[str]:
    """The table, line by line."""
    columns = "images | parts | networks | moments | inputs | logits | kept | rest | peak | measured"
    yield f"| {'stage':28} | {'crops':>7} | {columns} |"
    yield "|---" * 12 + "|"
    fits = []
    for file in files:
        config = configuration.load(file, ["data.root=none"])
        for name, stage, parts in variants(config):
            for again in (False, True):
                with_ = with_recompute(config, again)
                label = f"{config.name} {name}" + (", recompute" if again else "")
                found = computed(with_, stage, IMAGES, parts=parts)
                each = (found.networks, found.moments, found.inputs, found.logits, found.activations, found.rest)
                real = _measured(with_, stage, IMAGES, device, parts)
                crops = "/".join(map(str, _sizes(stage)))
                sizes = " | ".join(f"{size / 2**30:.1f}" for size in (*each, found.peak))
                yield f"| {label:28} | {crops:>7} | {IMAGES} | {parts} | {sizes} | {real} |"
                fits.append((label, crops, largest(with_, stage, found, GPUS, parts)))
    yield ""
    yield f"| {'images that fit a GPU of':28} | {'crops':>7} | " + " | ".join(f"{size} GB" for size in GPUS) + " |"
    yield "|---" * (2 + len(GPUS)) + "|"
    for label, crops, most in fits:
        yield f"| {label:28} | {crops:>7} | " + " | ".join(f"{each or 'none'}" for each in most) + " |"


def _measured(config: Config, stage: StageConfig, images: int, device: torch.device, parts: int) -> str:
    if device.type != "cuda":
        return "not measured"
    try:
        return f"{measured(config, stage, images, device, parts) / 2**30:.1f}"
    except torch.OutOfMemoryError:
        return "does not fit"
    finally:
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    folder = Path(build.__file__).parent / "configs"
    parser = argparse.ArgumentParser(description="Peak memory of a training step, and how many images fit a GPU.")
    parser.add_argument("--config", nargs="+", type=Path, metavar="FILE", help="instead of ViT-B/16 and ViT-L/16")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda; on cpu nothing is measured")
    options = parser.parse_args(arguments)
    try:
        device = pick_device(options.device)
        print(f"GB of 2³⁰ bytes, of one GPU that holds whole networks; {torch.__version__}")
        for line in report(options.config or [folder / f"{name}.yaml" for name in CONFIGS], device):
            print(line, flush=True)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
